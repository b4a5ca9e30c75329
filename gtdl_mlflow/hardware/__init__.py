"""The machine: its description, device locks, interference during a run, system metrics and peak performance."""
