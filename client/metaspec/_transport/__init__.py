"""The Open Inference Protocol over HTTP and gRPC. Private; `Surrogate` picks a transport by its URL."""

from metaspec._transport.protocol import AsyncTransport, ModelInfo, Reply, Request, Transport

__all__ = ["AsyncTransport", "ModelInfo", "Reply", "Request", "Transport"]
