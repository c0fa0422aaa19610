"""Structures and labels: random families, designs of optimisers, imported files, and the store they are kept in."""
