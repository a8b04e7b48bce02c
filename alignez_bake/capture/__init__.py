"""Where activations are recorded: what methods ask for is captured, nothing else."""
