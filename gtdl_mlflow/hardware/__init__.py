"""The machine: what it is, what it can do, which process uses it, and what disturbs a run."""
