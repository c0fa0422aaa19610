"""The solver: grid, time stepping, far field."""
