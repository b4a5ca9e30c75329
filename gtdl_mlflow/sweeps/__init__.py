"""Many runs under one parent: planning, resuming and concluding sweeps."""
