"""How good a network is: errors, figures, the report."""
