"""Everything that can go wrong, as one tree. Each message ends with what to do.

MetaSpecError
├── InvalidStructure (also a ValueError)   the array cannot be a structure; nothing was sent
├── InvalidCotangent (also a ValueError)   the array cannot be a cotangent; nothing was sent
├── ServerUnreachable                      no connection, or it broke
├── ServerBusy                             the queue is full; `retry_after` says when to come back
├── DeadlineExceeded                       no answer in time
├── ModelUnavailable                       the server has no such model or version
├── NotAllowed                             the server wants an API key, or another one
├── RequestTooLarge                        lower `batch_size`
├── ServerError                            the server failed, or refused for another reason
└── ProtocolError                          the answer is not what the protocol says
"""

from __future__ import annotations

from typing import ClassVar


class MetaSpecError(Exception):
    """Base of all errors of this package.

    Attributes:
        advice: what to do about an error of this kind.
    """

    advice: ClassVar[str] = ""

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}. {self.advice}" if self.advice else message


class InvalidStructure(MetaSpecError, ValueError):
    """The array cannot be a structure. Nothing has been sent."""


class InvalidCotangent(MetaSpecError, ValueError):
    """The array cannot be a cotangent. Nothing has been sent."""


class NotAllowed(MetaSpecError):
    """The server wants an API key, or another one."""

    advice = "Give the server's key as api_key"


class ServerUnreachable(MetaSpecError):
    """No connection to the server, or it broke, also after retrying."""

    advice = "Is metaspec-serve running there, or Triton, and is this its port for HTTP or gRPC?"


class ServerBusy(MetaSpecError):
    """The server's queue is full, also after retrying.

    Attributes:
        retry_after: seconds after which the server expects room, if it said so.
    """

    advice = "Try again later, or with a lower concurrency or more retries"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(MetaSpecError):
    """No answer in time."""

    advice = "Raise timeout, or lower batch_size"


class ModelUnavailable(MetaSpecError):
    """The server has no such model or version."""

    advice = "Check model and version (gradients come from the model MODEL_vjp)"


class RequestTooLarge(MetaSpecError):
    """The server does not take requests of this size."""

    advice = "Lower batch_size"


class ServerError(MetaSpecError):
    """The server failed, or refused the request for another reason."""

    advice = "The server's log may say more"


class ProtocolError(MetaSpecError):
    """The answer is not what the Open Inference Protocol or the model's contract says."""

    advice = "Is this a server of models that metaspec-export wrote?"
