"""Training data: packed samples, exact augmentation, and the data module."""
