"""The models of a server, for the tools: one connection to each, made when it is first asked for."""

from __future__ import annotations

from metaspec._surrogate.client import Surrogate
from metaspec_contract.model import DEFAULT_MODEL, is_gradient_model

_BATCH = 32  # structures per request: answered within seconds by a server without a GPU
_WAIT = 10.0  # seconds to wait for a server that goes away: less than a client waits for an answer


class Models:
    """Surrogates by name. Threads may share it.

    Args:
        url: address of the server.
        model: name of the default model.
        api_key: API key, if the server requires one.

    Raises:
        ValueError: the URL has another scheme than those of `metaspec.Surrogate`.
    """

    def __init__(self, url: str, model: str = DEFAULT_MODEL, api_key: str | None = None) -> None:
        self.url, self.default = url, model
        self._api_key = api_key
        self._open = {model: self._connect(model)}

    def get(self, name: str | None) -> Surrogate:
        """The surrogate of a model, the default one for None.

        Raises:
            ValueError: the name is that of a gradient model.
            MetaSpecError: the server does not answer, or has no such model.
        """
        wanted = name or self.default
        if is_gradient_model(wanted):
            raise ValueError(f"model must predict spectra, got {wanted}, which computes gradients for another model")
        surrogate = self._open.get(wanted) or self._connect(wanted)
        surrogate.metadata()  # a name that the server does not know is not kept
        return self._open.setdefault(wanted, surrogate)

    def close(self) -> None:
        """Close the connections."""
        for surrogate in self._open.values():
            surrogate.close()

    def _connect(self, model: str) -> Surrogate:
        return Surrogate(
            self.url, model=model, api_key=self._api_key, batch_size=_BATCH, timeout=120, wait=_WAIT, progress=False
        )
