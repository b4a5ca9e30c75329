"""The machine: its description, the lock of a device, interference during a run, system metrics and peak performance."""
