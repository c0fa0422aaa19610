"""The command `metaspec`."""
