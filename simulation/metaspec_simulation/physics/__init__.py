"""The solver: grid, time loop, far field."""
