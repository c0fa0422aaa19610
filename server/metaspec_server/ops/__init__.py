"""Operation: the command line, logs, metrics and traces."""
