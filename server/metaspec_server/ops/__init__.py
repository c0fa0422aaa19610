"""Operation: command line, logs, metrics and traces."""

__all__: list[str] = []
