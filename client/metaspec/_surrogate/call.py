"""One call of a client: the requests it consists of, and the array that their answers are written to."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import ProtocolError
from metaspec._structures import check_structures
from metaspec._surrogate.arrays import as_packed, as_sent, check_cotangent
from metaspec._transport.protocol import ModelInfo, Reply, Request
from metaspec_contract.model import COTANGENT, GRADIENT, SPECTRA, STRUCTURE, gradient_model
from metaspec_contract.structures import as_density, unpack


class Call:
    """Spectra of structures, or gradients for their cotangents, in requests of `batch_size` rows.

    A row is a structure, or a structure with one of its cotangents. A request is built just before it is sent, and its
    answer is written into `values`: beyond that array, only requests in flight take memory.

    Args:
        structures: the caller's structures.
        cotangent: the caller's cotangents; None to ask for spectra.
        info: description of the model.
        model: name of the model.
        version: version of the model; "" for the server's choice.
        batch_size: rows per request.
        priority: priority of the requests; 0 for the server's default.

    Raises:
        InvalidStructure: see `check_structures`.
        InvalidCotangent: see `check_cotangent`.
    """

    def __init__(
        self,
        structures: ArrayLike,
        cotangent: ArrayLike | None,
        *,
        info: ModelInfo,
        model: str,
        version: str,
        batch_size: int,
        priority: int,
    ) -> None:
        bits = as_packed(structures, info.pixels)
        self._structures = check_structures(structures, info.pixels) if bits is None else bits
        self._is_packed, self._pixels = bits is not None, info.pixels
        self._model, self._version, self._batch_size, self._priority = model, version, batch_size, priority
        self._takes_bits = info.takes_bits
        self._cotangent = None
        self._lead: tuple[int, ...] = (len(self._structures),)
        if cotangent is not None:
            self._cotangent = check_cotangent(cotangent, len(self._structures), info.spectra_shape)
            self._lead = self._cotangent.shape[:-2]
        self.output = SPECTRA if cotangent is None else GRADIENT
        shape = info.spectra_shape if cotangent is None else (1, *info.pixels)
        self.rows = int(np.prod(self._lead))
        self._values = np.empty((self.rows, *shape), np.float32)
        self._versions = [""] * -(-self.rows // batch_size)

    def __len__(self) -> int:
        """Number of requests."""
        return len(self._versions)

    @property
    def version(self) -> str:
        """Version of the model that answered; "" if the server did not say."""
        return self._versions[0] if self._versions else ""

    @property
    def values(self) -> NDArray[np.float32]:
        """Spectra (N, channels, wavelengths), or gradients (N, y, x) or (N, K, y, x)."""
        if self._cotangent is None:
            return self._values
        return self._values.reshape(*self._lead, *self._values.shape[2:])

    def request(self, n: int, version: str = "") -> Request:
        """The n-th request, for a certain version of the model if one is given."""
        start, stop = self._span(n)
        if self._cotangent is None:
            model, inputs = self._model, {STRUCTURE: self._sent(slice(start, stop))}
        else:
            at = np.unravel_index(range(start, stop), self._lead)  # index of the structure, and of its cotangent
            cotangent = np.ascontiguousarray(self._cotangent[at], np.float32)
            model, inputs = gradient_model(self._model), {STRUCTURE: self._sent(at[0]), COTANGENT: cotangent}
        return Request("infer", model, version or self._version, inputs, (self.output,), self._priority)

    def write(self, n: int, reply: Reply) -> int:
        """Write the answer to the n-th request into `values`, and return its number of rows.

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
        """If a new version took over during the call: that version, and the requests that another one answered."""
        versions = set(self._versions)
        if len(versions) < 2:
            return "", []
        newest = max(versions, key=lambda version: (int(version) if version.isdigit() else -1, version))
        return newest, [n for n, version in enumerate(self._versions) if version != newest]

    def _span(self, n: int) -> tuple[int, int]:
        return n * self._batch_size, min((n + 1) * self._batch_size, self.rows)

    def _sent(self, which: slice | NDArray[np.intp]) -> NDArray[np.generic]:
        structures = self._structures[which]
        if not self._is_packed:
            return as_sent(structures, self._takes_bits)
        if self._takes_bits:
            return np.ascontiguousarray(structures)
        return as_density(unpack(structures, self._pixels)[:, np.newaxis])
