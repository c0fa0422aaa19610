"""DiffractionNet, its loss, its data and its training."""
