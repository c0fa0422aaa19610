"""The errors of this package, as one tree. Each message ends with what to do.

MetaSpecError
├── InvalidStructure (also a ValueError)   the array is not a structure; nothing was sent
├── InvalidCotangent (also a ValueError)   the array is not a cotangent; nothing was sent
├── InvalidCondition (also a ValueError)   the model has no such condition, or the value is none of it; nothing was sent
├── ServerUnreachable                      no connection, or it broke
├── ServerBusy                             the queue is full; `retry_after` is the pause that the server asks for
├── DeadlineExceeded                       no answer within `timeout`
├── ModelUnavailable                       the server has no such model or version
├── NotAllowed                             the server requires an API key, or another one
├── RequestTooLarge                        too many structures or bytes in one request
├── ServerError                            the server failed, or refused for another reason
└── ProtocolError                          the answer violates the protocol, or the model's description contradicts itself
"""

from __future__ import annotations

from typing import ClassVar

from metaspec_contract import conditions, source, structures
from metaspec_contract.model import gradient_model


class MetaSpecError(source.SourceError):
    """Base of all errors of this package.

    Attributes:
        advice: what to do about an error of this kind.
    """

    advice: ClassVar[str] = ""

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}. {self.advice}" if self.advice else message


class InvalidStructure(MetaSpecError, structures.InvalidStructure):
    """The array is not a structure. Nothing has been sent."""


class InvalidCotangent(MetaSpecError, source.InvalidCotangent):
    """The array is not a cotangent. Nothing has been sent."""


class InvalidCondition(MetaSpecError, conditions.InvalidCondition):
    """The model has no such condition, or the value is none of it. Nothing has been sent.

    Attributes:
        name: name of the condition.
    """


class NotAllowed(MetaSpecError):
    """The server requires an API key, or another one."""

    advice = "Give the server's key as api_key"


class ServerUnreachable(MetaSpecError):
    """No connection to the server, or it broke, and retrying did not help."""

    advice = "Is metaspec-serve running there, or Triton, and is this its port for HTTP or gRPC?"


class ServerBusy(MetaSpecError):
    """The server's queue is full, and retrying did not help.

    Attributes:
        retry_after: seconds after which the server expects to have room; None if it does not say.
    """

    advice = "Try again later, or with a lower concurrency or more retries"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(MetaSpecError):
    """No answer within `timeout`."""

    advice = "Raise timeout, or lower batch_size"


class ModelUnavailable(MetaSpecError):
    """The server has no such model or version."""

    advice = f"Check model and version (gradients come from the model {gradient_model('MODEL')})"


class RequestTooLarge(MetaSpecError):
    """The server does not accept requests of this size."""

    advice = "Lower batch_size"


class ServerError(MetaSpecError):
    """The server failed, or refused the request for another reason."""

    advice = "The server's log may say more"


class ProtocolError(MetaSpecError):
    """The answer violates the Open Inference Protocol, or the model's description is missing or contradicts itself."""

    advice = "Is this a server of models that metaspec-export wrote?"
