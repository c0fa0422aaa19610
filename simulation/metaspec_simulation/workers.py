"""Worker processes of the solver, one thread each.

A worker is a new interpreter, fed by pipes: structures go in, spectra and gradients come out. The derivative of an objective is
asked for between the forward and the adjoint runs, so that the objective stays in the caller's process. Workers are in process
groups of their own, out of reach of Ctrl-C, and end when their input ends, which it also does when the caller is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.process import complete_process
from metaspec_contract.source import SourceError
from metaspec_simulation.physics.solver import Solver

Array = NDArray[Any]
Cotangent = Array | Callable[[NDArray[np.float32]], Array]
"""Weights of the spectra, (4, W) or (C, 4, W), or the function that returns them for the spectra, float32 (4, W)."""

_ATTEMPTS = 2  # of a structure whose worker was killed
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


class Job(NamedTuple):
    """One structure to simulate.

    Attributes:
        density: density, float64 (y, x).
        distances_um: distances of the detectors, float64 (D,); one for a gradient.
        cotangent: weights of the spectra for the gradient; None for the spectra alone.
    """

    density: Array
    distances_um: NDArray[np.float64]
    cotangent: Cotangent | None


class Result(NamedTuple):
    """What became of a job.

    Attributes:
        spectra: float32 (D, 4, W).
        gradient: float32 (y, x) or (C, y, x); None if the job had no cotangent.
        slope: derivative of the spectra by the distance, float32 (4, W); None if the job had no cotangent.
    """

    spectra: NDArray[np.float32]
    gradient: NDArray[np.float32] | None = None
    slope: NDArray[np.float32] | None = None


def do(solver: Solver, job: Job) -> Result:
    """Do a job in this process."""
    if job.cotangent is None:
        return Result(solver.at_distances(job.density, job.distances_um))
    (distance,) = job.distances_um
    simulation, gradient, slope = solver.gradient_with_slope(job.density, job.cotangent, distance)
    return Result(simulation.spectra[None], gradient, slope)


class Workers:
    """A pool of workers, which start when there is work, and stay until `close`.

    Args:
        settings: arguments of the solver, with the process as JSON.
        most: largest number of workers.
    """

    def __init__(self, settings: dict[str, Any], most: int) -> None:
        self._settings, self._most = settings, most
        self._replies: SimpleQueue[tuple[_Worker, _Message | None]] = SimpleQueue()
        self._all: list[_Worker] = []

    def compute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Do jobs in the workers; yields the number of each, and its result, as they come.

        If the caller stops in between, the workers that are at work are killed.

        Raises:
            SourceError: a worker was killed, and so was the one that repeated its job; or a job failed.
        """
        todo, attempts, left = deque(range(len(jobs))), [0] * len(jobs), len(jobs)
        try:
            while left:
                for worker in self._idle(len(todo)):
                    attempts[todo[0]] += 1
                    worker.start(todo[0], jobs[todo.popleft()])
                worker, reply = self._replies.get()
                if worker not in self._all:  # killed after an earlier call
                    continue
                number = worker.number
                if reply is None:
                    self._all.remove(worker)
                    status = worker.kill()
                    if number is not None and attempts[number] == _ATTEMPTS:
                        raise SourceError(_how_it_ended(status))
                    if number is not None:
                        todo.appendleft(number)
                elif number is None:
                    raise SourceError("a worker process of the solver answered without a question")
                elif reply.kind == "error":
                    raise SourceError(f"the solver failed: {reply.text}")
                elif reply.kind == "ask":
                    cotangent = jobs[number].cotangent
                    assert callable(cotangent)
                    worker.send(_Message("cotangent", (cotangent(reply.arrays[0]),)))
                else:
                    worker.number = None
                    left -= 1
                    yield number, Result(*reply.arrays)
        finally:
            for worker in [worker for worker in self._all if worker.number is not None]:
                self._all.remove(worker)
                worker.kill()

    def close(self) -> None:
        """End the workers."""
        while self._all:
            self._all.pop().kill()

    def _idle(self, wanted: int) -> list[_Worker]:
        """Up to as many idle workers as wanted; new ones are started."""
        idle = [worker for worker in self._all if worker.number is None][:wanted]
        for _ in range(min(wanted - len(idle), self._most - len(self._all))):
            self._all.append(_Worker(self._settings, self._replies))
            idle.append(self._all[-1])
        return idle


def _how_it_ended(status: int) -> str:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"a worker process of the solver {how}, twice at the same structure: is there enough memory for all workers?"


class _Message(NamedTuple):
    """What travels through the pipes: its kind, arrays of numbers, and a text."""

    kind: str
    arrays: tuple[Array, ...] = ()
    text: str = ""

    def write(self, file: IO[bytes]) -> None:
        header = [self.kind, self.text, [(array.dtype.str, array.shape) for array in self.arrays]]
        file.write(json.dumps(header).encode() + b"\n" + b"".join(array.tobytes() for array in self.arrays))
        file.flush()

    @classmethod
    def read(cls, file: IO[bytes]) -> _Message | None:
        """The next message; None at the end."""
        line = file.readline()
        if not line.endswith(b"\n"):
            return None
        kind, text, forms = json.loads(line)
        arrays = []
        for dtype, shape in forms:
            content = file.read(int(np.dtype(dtype).itemsize * np.prod(shape)))
            if len(content) < np.dtype(dtype).itemsize * np.prod(shape):
                return None
            arrays.append(np.frombuffer(content, dtype).reshape(shape))
        return cls(kind, tuple(arrays), text)


class _Worker:
    """The caller's side of a worker.

    Attributes:
        number: number of the job that it is at; None if it is idle.
    """

    def __init__(self, settings: dict[str, Any], replies: SimpleQueue[tuple[_Worker, _Message | None]]) -> None:
        self.number: int | None = None
        self._replies = replies
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "metaspec_simulation.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _ONE_THREAD,
            process_group=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        Thread(target=self._read, daemon=True).start()
        self.send(_Message("settings", text=json.dumps(settings)))

    def start(self, number: int, job: Job) -> None:
        """Give it a job."""
        self.number = number
        if job.cotangent is None:
            self.send(_Message("simulate", (job.density, job.distances_um)))
        elif callable(job.cotangent):
            self.send(_Message("ask", (job.density, job.distances_um)))
        else:
            self.send(_Message("gradient", (job.density, job.distances_um, job.cotangent)))

    def send(self, message: _Message) -> None:
        """Send a message, to nobody if the worker has ended: the end of its output tells."""
        with suppress(BrokenPipeError):
            message.write(self._input)

    def kill(self) -> int:
        """End it, and return its exit status."""
        self._process.kill()
        with suppress(BrokenPipeError):  # of what was still buffered
            self._input.close()
        return self._process.wait()

    def _read(self) -> None:
        reply: _Message | None = _Message("")
        while reply is not None:
            reply = _Message.read(self._output)
            self._replies.put((self, reply))
        self._output.close()


def main() -> None:
    """Work until standard input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that is printed gets between the messages
    inbox: SimpleQueue[_Message] = SimpleQueue()
    Thread(target=_receive, args=(inbox,), daemon=True).start()
    try:
        settings = json.loads(inbox.get().text)
        solver = Solver(complete_process(settings.pop("process")), **settings)
        while True:
            kind, arrays, _ = inbox.get()

            def ask(spectra: NDArray[np.float32]) -> Array:
                _Message("ask", (spectra,)).write(out)
                return inbox.get().arrays[0]

            cotangent = None if kind == "simulate" else ask if kind == "ask" else arrays[2]
            done = do(solver, Job(arrays[0], arrays[1], cotangent))
            _Message("done", tuple(array for array in done if array is not None)).write(out)
    except Exception as error:
        _Message("error", text=f"{type(error).__name__}: {error}").write(out)


def _receive(inbox: SimpleQueue[_Message]) -> None:
    """Pass messages on; ends the process, whatever it is doing, when there are no more."""
    while (message := _Message.read(sys.stdin.buffer)) is not None:
        inbox.put(message)
    os._exit(0)


if __name__ == "__main__":
    main()
