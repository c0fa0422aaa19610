"""What makes a release of the four distributions: `make release`, and `make version` before it."""
