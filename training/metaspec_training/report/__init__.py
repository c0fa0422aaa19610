"""Evaluation of a trained network: errors, figures, the report."""
