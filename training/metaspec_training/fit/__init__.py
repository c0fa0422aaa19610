"""Training: module, loss, optimiser, checkpoints, and callbacks that steer a run."""
