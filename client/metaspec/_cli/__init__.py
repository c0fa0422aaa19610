"""The command `metaspec`. Private; needs the extra "optimise"."""
