"""One call of a client: the requests it consists of, and the array that their answers are written to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._conditions import check_conditions
from metaspec._errors import ProtocolError
from metaspec._structures import check_structures
from metaspec._surrogate.arrays import as_packed, as_sent, check_cotangent
from metaspec._transport.protocol import ModelInfo, Reply, Request
from metaspec_contract.conditions import Condition, ConditionValue
from metaspec_contract.model import COTANGENT, GRADIENT, SPECTRA, STRUCTURE, gradient_model
from metaspec_contract.source import Gradients
from metaspec_contract.structures import as_density, unpack


class Call:
    """Spectra of structures, or gradients for their cotangents, in requests of `batch_size` rows.

    A row is a structure with its conditions, or these with one of the structure's cotangents. A request is built just before
    it is sent, and its answer is written into the result: beyond that, only requests in flight take memory. Each request
    has all conditions of the model, because not every server knows their defaults.

    Args:
        structures: the caller's structures.
        cotangent: the caller's cotangents; None to ask for spectra.
        conditions: the caller's conditions, by name.
        info: description of the model.
        model: name of the model.
        version: version of the model; "" for the server's choice.
        batch_size: rows per request.
        priority: priority of the requests; 0 for the server's default.

    Raises:
        InvalidStructure: see `check_structures`.
        InvalidCotangent: see `check_cotangent`.
        InvalidCondition: see `check_conditions`.
    """

    def __init__(
        self,
        structures: ArrayLike,
        cotangent: ArrayLike | None,
        conditions: Mapping[str, ConditionValue],
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
        self._known = info.conditions
        self._conditions = check_conditions(self._known, conditions, len(self._structures))
        shapes: dict[str, tuple[int, ...]] = {SPECTRA: info.spectra_shape}
        if cotangent is not None:
            by_condition = {condition.gradient: condition.shape for condition in self._known}
            shapes = {GRADIENT: (1, *info.pixels), **by_condition}
        self.rows = int(np.prod(self._lead))
        self._answered = {name: np.empty((self.rows, *shape), np.float32) for name, shape in shapes.items()}
        self._versions = [""] * -(-self.rows // batch_size)

    def __len__(self) -> int:
        """Number of requests."""
        return len(self._versions)

    @property
    def version(self) -> str:
        """Version of the model that answered; "" if the server did not say."""
        return self._versions[0] if self._versions else ""

    @property
    def spectra(self) -> NDArray[np.float32]:
        """Spectra (N, channels, wavelengths) of a call without cotangents."""
        return self._answered[SPECTRA]

    @property
    def gradients(self) -> Gradients:
        """Gradients of a call with cotangents."""

        def by(condition: Condition) -> NDArray[np.float32]:
            array, vector = self._answered[condition.gradient], condition.shape if condition.size > 1 else ()
            return array.reshape(*self._lead, *vector)

        structure = self._answered[GRADIENT].reshape(*self._lead, *self._pixels)
        return Gradients(structure, {condition.name: by(condition) for condition in self._known})

    def complete(self, conditions: Iterable[Condition]) -> None:
        """Add defaults of further conditions: a gradient model may take more of them than its forward model."""
        further = [condition for condition in conditions if condition.name not in self._conditions]
        self._conditions |= check_conditions(further, {}, len(self._structures))

    def request(self, n: int, version: str = "") -> Request:
        """The n-th request, for a certain version of the model if one is given."""
        start, stop = self._span(n)
        if self._cotangent is None:
            model, inputs = self._model, self._inputs(slice(start, stop))
        else:
            at = np.unravel_index(range(start, stop), self._lead)  # index of the structure, and of its cotangent
            cotangent = np.ascontiguousarray(self._cotangent[at], np.float32)
            model, inputs = gradient_model(self._model), self._inputs(at[0]) | {COTANGENT: cotangent}
        return Request("infer", model, version or self._version, inputs, tuple(self._answered), self._priority)

    def write(self, n: int, reply: Reply) -> int:
        """Write the answer to the n-th request into the result, and return its number of rows.

        Raises:
            ProtocolError: the answer has no such tensor, or one of another shape or type.
        """
        start, stop = self._span(n)
        for name, answered in self._answered.items():
            array, expected = reply.arrays.get(name), (stop - start, *answered.shape[1:])
            if array is None:
                raise ProtocolError(f"the server's answer has no {name}")
            if array.shape != expected or array.dtype != np.float32:
                raise ProtocolError(
                    f"expected float32 {name} of shape {expected}, got {array.dtype} of shape {array.shape}"
                )
            answered[start:stop] = array
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

    def _inputs(self, which: slice | NDArray[np.intp]) -> dict[str, NDArray[np.generic]]:
        """Structures and conditions of some rows."""
        return {
            STRUCTURE: self._sent(which),
            **{name: np.ascontiguousarray(values[which]) for name, values in self._conditions.items()},
        }

    def _sent(self, which: slice | NDArray[np.intp]) -> NDArray[np.generic]:
        structures = self._structures[which]
        if not self._is_packed:
            return as_sent(structures, self._takes_bits)
        if self._takes_bits:
            return np.ascontiguousarray(structures)
        return as_density(unpack(structures, self._pixels)[:, np.newaxis])
