"""HTTP: routes, codecs of their bodies, and the middleware around every request."""

__all__: list[str] = []
