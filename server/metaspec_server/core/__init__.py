"""The service: micro-batching, result cache and registry of models. It knows neither HTTP nor the library of an engine."""

__all__: list[str] = []
