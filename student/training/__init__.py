"""The training loop: steps, schedule, checkpoints, the end of a run."""
