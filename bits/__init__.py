"""WHERE a tensor lives and how replicas agree: devices, state, checkpoints, meters, noise, clock."""
