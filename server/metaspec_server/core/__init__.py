"""The service: micro-batching, cache, registry of models. It knows neither HTTP nor an engine's library."""
