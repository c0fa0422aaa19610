"""Structures and labels: random families, importers, recipes of data sets."""
