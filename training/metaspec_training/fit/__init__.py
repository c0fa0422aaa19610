"""Fitting: module, loss, optimiser, and what steers a run."""
