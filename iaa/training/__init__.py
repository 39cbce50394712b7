"""Training: a run's parts, its loop, its checkpoints and its folder."""
