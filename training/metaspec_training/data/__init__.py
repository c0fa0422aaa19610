"""Batches of structures and spectra, augmented."""
