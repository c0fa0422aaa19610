"""One call of a client: the requests it is made of, and the array that their answers are written into."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import ProtocolError
from metaspec._surrogate.arrays import as_sent, check_cotangent, check_structures
from metaspec._transport.protocol import ModelInfo, Reply, Request


class Call:
    """Spectra of structures, or gradients for their cotangents, in requests of `batch_size` rows.

    A row is a structure, or a structure with one of its cotangents. A request is made when it is about to be sent, and
    its answer goes to its place in `values`: beyond that array, only what is under way takes memory.

    Args:
        structures: of the caller.
        cotangent: of the caller; None to ask for spectra.
        info: what the model takes and gives.
        model: to ask. version: of it; the server's choice if empty.
        batch_size: rows in a request.

    Raises:
        InvalidStructure: see `check_structures`.
        InvalidCotangent: see `check_cotangent`.
    """

    def __init__(
        self,
        structures: ArrayLike,
        cotangent: ArrayLike | None,
        info: ModelInfo,
        model: str,
        version: str,
        batch_size: int,
    ) -> None:
        self._structures = check_structures(structures, info.pixels)
        self._info, self._model, self._version, self._batch_size = info, model, version, batch_size
        self._cotangent = None
        self._lead: tuple[int, ...] = (len(self._structures),)
        if cotangent is not None:
            self._cotangent = check_cotangent(cotangent, len(self._structures), info.spectra_shape)
            self._lead = self._cotangent.shape[:-2]
        self.output = "spectra" if cotangent is None else "gradient"
        shape = info.spectra_shape if cotangent is None else (1, *info.pixels)
        self.rows = int(np.prod(self._lead))
        self._values = np.empty((self.rows, *shape), np.float32)
        self._versions = [""] * -(-self.rows // batch_size)

    def __len__(self) -> int:
        """Number of requests."""
        return len(self._versions)

    @property
    def version(self) -> str:
        """Of the model that answered, as far as the server told."""
        return self._versions[0] if self._versions else ""

    @property
    def values(self) -> NDArray[np.float32]:
        """Spectra (N, channels, wavelengths), or gradients (N, y, x) or (N, K, y, x)."""
        if self._cotangent is None:
            return self._values
        return self._values.reshape(*self._lead, *self._info.pixels)

    def request(self, n: int, version: str = "") -> Request:
        """The n-th request, of a certain version of the model if one is given."""
        start, stop = self._span(n)
        if self._cotangent is None:
            model, inputs = self._model, {"structure": self._sent(slice(start, stop))}
        else:
            at = np.unravel_index(range(start, stop), self._lead)  # which structure, and which of its cotangents
            cotangent = np.ascontiguousarray(self._cotangent[at], np.float32)
            model, inputs = f"{self._model}_vjp", {"structure": self._sent(at[0]), "cotangent": cotangent}
        return Request("infer", model, version or self._version, inputs, (self.output,))

    def write(self, n: int, reply: Reply) -> int:
        """Put the answer to the n-th request in its place, and return how many rows it has.

        Raises:
            ProtocolError: the answer has no such tensor, or one of another shape or type.
        """
        start, stop = self._span(n)
        array, expected = reply.arrays.get(self.output), (stop - start, *self._values.shape[1:])
        if array is None:
            raise ProtocolError(f"the server's answer has no {self.output}")
        if array.shape != expected or array.dtype != np.float32:
            raise ProtocolError(
                f"expected float32 {self.output} of shape {expected}, got {array.dtype} of shape {array.shape}"
            )
        self._values[start:stop] = array
        self._versions[n] = str(reply.document.get("model_version", ""))
        return stop - start

    def stale(self) -> tuple[str, list[int]]:
        """If a new version took over in the middle of the call: that version, and which answers are of another one."""
        versions = set(self._versions)
        if len(versions) < 2:
            return "", []
        newest = max(versions, key=lambda version: (int(version) if version.isdigit() else -1, version))
        return newest, [n for n, version in enumerate(self._versions) if version != newest]

    def _span(self, n: int) -> tuple[int, int]:
        return n * self._batch_size, min((n + 1) * self._batch_size, self.rows)

    def _sent(self, which: slice | NDArray[np.intp]) -> NDArray[np.generic]:
        return as_sent(self._structures[which], self._info.takes_bits)
