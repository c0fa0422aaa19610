"""The Open Inference Protocol v2 over gRPC. Its messages are those of `tritonclient`, which only this and the engines need."""

__all__: list[str] = []
