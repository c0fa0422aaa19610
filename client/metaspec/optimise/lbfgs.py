"""L-BFGS-B from SciPy for many starts: one search per start, evaluated together in batches."""

from __future__ import annotations

import weakref
from queue import SimpleQueue
from threading import Thread

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from metaspec.optimise.base import Array, Optimiser, check_latents, digest


class LBFGSB(Optimiser):
    """L-BFGS-B (Byrd, Lu, Nocedal and Zhu, SIAM J. Sci. Comput. 16, 1190 (1995)) from SciPy.

    A step is one evaluation per start: an iteration or a point of a line search. A search that ends starts over at its
    best point, without its memory; so do all searches after `restart`.

    SciPy does not expose its state, so the state here is all answers since the last restart, which `restore` replays.

    Args:
        start: latents (M, y, x) in [0, 1].
        memory: number of corrections of the approximate Hessian.
    """

    line_search = True

    def __init__(self, start: ArrayLike, memory: int = 10) -> None:
        self._start = check_latents(start)
        self.memory = memory
        self.settings = {"name": "lbfgs", "start": digest(self._start), "memory": memory}
        self._searches: list[_Search] = []
        weakref.finalize(self, _close, self._searches)
        self._begin()

    def _begin(self) -> None:
        _close(self._searches)
        self._searches += [_Search(latent.ravel(), self.memory) for latent in self._start]
        self._told: list[tuple[Array, Array]] = []
        self._best, self._best_value = self._start.copy(), np.full(len(self._start), -np.inf)
        self._asked = None

    def _propose(self) -> Array:
        return np.stack([search.point.reshape(self._start.shape[1:]) for search in self._searches])

    def _learn(self, value: Array, gradient: Array) -> None:
        told = value, gradient.astype(np.float32)  # as it is stored, so that a replay is bit-identical
        self._tell(*told)
        self._told.append(told)

    def _tell(self, value: Array, gradient: Array) -> None:
        better = value > self._best_value
        self._best[better], self._best_value[better] = self._propose()[better], value[better]
        for search, cost, slope in zip(self._searches, -value, -gradient.astype(np.float64), strict=True):
            search.answer(cost, slope.ravel())

    def restart(self) -> None:
        """Start all searches over at their best points."""
        self._start = self._best
        self._begin()

    def state(self) -> dict[str, Array]:
        """Starting points of the searches, and all answers since."""
        told = {f"value.{n:04}": value for n, (value, _) in enumerate(self._told)}
        told |= {f"gradient.{n:04}": gradient for n, (_, gradient) in enumerate(self._told)}
        return {"start": self._start, **told}

    def restore(self, state: dict[str, Array]) -> None:
        """Start there and replay the answers."""
        self._start = state["start"]
        self._begin()
        for n in range(len(state) // 2):
            self._learn(state[f"value.{n:04}"], state[f"gradient.{n:04}"])


class _Closed(Exception):
    pass


class _Search:
    """A minimisation in its own thread, which waits at each point for the cost and its gradient."""

    def __init__(self, start: Array, memory: int) -> None:
        self._points: SimpleQueue[Array | Exception] = SimpleQueue()
        self._answers: SimpleQueue[tuple[float, Array] | None] = SimpleQueue()
        self._thread = Thread(target=_search, args=(start, memory, self._points, self._answers), daemon=True)
        self._thread.start()
        self._await()

    def answer(self, cost: float, slope: Array) -> None:
        """Answer with the cost and its gradient at `point`, and wait until `point` is the next one."""
        self._answers.put((cost, slope))
        self._await()

    def close(self) -> None:
        """End the thread."""
        self._answers.put(None)
        self._thread.join()

    def _await(self) -> None:
        point = self._points.get()
        if isinstance(point, Exception):
            raise point
        self.point = point


def _search(
    start: Array,
    memory: int,
    points: SimpleQueue[Array | Exception],
    answers: SimpleQueue[tuple[float, Array] | None],
) -> None:
    best, lowest = start, np.inf

    def cost(point: Array) -> tuple[float, Array]:
        nonlocal best, lowest
        points.put(point.copy())
        answer = answers.get()
        if answer is None:
            raise _Closed
        if answer[0] < lowest:
            best, lowest = point.copy(), answer[0]
        return answer

    options = {
        "maxcor": memory,
        "maxiter": np.iinfo(np.int32).max,
        "maxfun": np.iinfo(np.int32).max,
        "ftol": 0,
        "gtol": 0,
    }
    try:
        while True:
            minimize(cost, best, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * len(start), options=options)
    except _Closed:
        return
    except Exception as error:
        points.put(error)


def _close(searches: list[_Search]) -> None:
    while searches:
        searches.pop().close()
