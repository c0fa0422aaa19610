"""Jobs that take minutes, on worker processes of this machine or on the workers of a Dask scheduler.

A worker that is killed, by the system where memory is short for example, costs the job that it was at, which is repeated.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Lock
from typing import Any, TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Function = Callable[[Job, Callable[[], object]], object]
"""Does a job in a worker, and calls its second argument after each step; a function of a module, which workers import."""

_ATTEMPTS = 8  # of a job whose workers are killed
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Progress:
    """A progress bar over the steps of jobs; steps of a job that is repeated are taken back.

    Args:
        bar: bar to keep up to date.
        sizes: number of steps of each job.
    """

    def __init__(self, bar: tqdm[Any], sizes: Sequence[int]) -> None:
        self._bar, self._sizes, self._lock = bar, sizes, Lock()
        self._done = [0] * len(sizes)

    def set(self, number: int, steps: int) -> None:
        """Set how many steps of a job are done; what comes after its end is ignored."""
        with self._lock:
            if self._done[number] < self._sizes[number]:
                self._bar.update(steps - self._done[number])
                self._done[number] = steps

    def finish(self, number: int) -> None:
        """Note that a job is done."""
        self.set(number, self._sizes[number])


def run_here(function: Function[Job], jobs: Sequence[Job], workers: int, progress: Progress) -> None:
    """Do jobs in processes of one thread each: threads would compete for a core.

    Whatever happens, no worker is left when this returns; Ctrl-C reaches this process only.

    Args:
        function: does a job.
        jobs: jobs, done in this order.
        workers: largest number of processes.
        progress: progress of the jobs.

    Raises:
        ChildProcessError: the worker of a job was killed time and again.
        Exception: what `function` raised.
    """
    todo = deque(range(len(jobs)))
    attempts = [0] * len(jobs)
    pool: dict[Connection, _Worker] = {}
    try:
        while todo or any(worker.number is not None for worker in pool.values()):
            idle = [worker for worker in pool.values() if worker.number is None]
            while todo and (idle or len(pool) < workers):
                worker = idle.pop() if idle else _start(function)
                pool[worker.pipe] = worker
                worker.number, worker.steps = todo.popleft(), 0
                with suppress(OSError):  # it has been killed, which shows below
                    worker.pipe.send(jobs[worker.number])
            for pipe in wait(list(pool)):
                worker = pool[pipe]  # type: ignore[index]
                message = worker.receive()
                number = worker.number
                if message == _STEP and number is not None:
                    worker.steps += 1
                    progress.set(number, worker.steps)
                elif message == _DONE and number is not None:
                    progress.finish(number)
                    worker.number = None
                elif isinstance(message, Exception):
                    raise message
                else:
                    del pool[worker.pipe]
                    worker.end()
                    if number is not None:
                        attempts[number] += 1
                        if attempts[number] == _ATTEMPTS:
                            raise ChildProcessError(
                                f"worker processes were killed {_ATTEMPTS} times at the same job: is there "
                                "enough memory for all workers?"
                            )
                        progress.set(number, 0)
                        todo.appendleft(number)
    finally:
        for worker in pool.values():
            worker.end()


def run_on_cluster(function: Function[Job], jobs: Sequence[Job], scheduler: str, progress: Progress) -> None:
    """Do jobs on the workers of a Dask scheduler.

    Args:
        function: does a job.
        jobs: jobs.
        scheduler: address of the scheduler.
        progress: progress of the jobs.

    Raises:
        ChildProcessError: the worker of a job was killed time and again.
        Exception: what `function` raised.
    """
    from dask.distributed import Client, KilledWorker, as_completed  # slow to import

    topic = f"metaspec-{uuid.uuid4().hex}"
    with Client(scheduler) as client:
        client.subscribe_topic(topic, lambda event: progress.set(*event[1]))

        def submit(number: int) -> Any:
            return client.submit(_do_on_cluster, function, jobs[number], topic, number, pure=False)

        numbers = {submit(number): number for number in range(len(jobs))}
        attempts = [0] * len(jobs)
        pending = as_completed(list(numbers))
        try:
            for future in pending:
                number = numbers.pop(future)
                try:
                    future.result()
                except KilledWorker:
                    attempts[number] += 1
                    if attempts[number] == _ATTEMPTS:
                        raise ChildProcessError(
                            "workers of the cluster were killed time and again at the same job"
                        ) from None
                    progress.set(number, 0)
                    again = submit(number)
                    numbers[again] = number
                    pending.add(again)
                else:
                    progress.finish(number)
                future.release()
        except BaseException:
            client.cancel(list(numbers), force=True)
            raise


def _do_on_cluster(function: Function[Job], job: Job, topic: str, number: int) -> None:
    from dask.distributed import get_worker

    worker, steps = get_worker(), iter(range(1, 1 << 62))
    function(job, lambda: worker.log_event(topic, (number, next(steps))))


_STEP, _DONE = "step", "done"
_LEAVE = 5.0  # seconds for a worker to end by itself


class _Worker:
    """This process's side of a worker.

    Attributes:
        pipe: connection to it.
        number: number of its job, None if it is idle.
        steps: steps of the job that are done.
    """

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.number: int | None = None
        self.steps = 0

    def receive(self) -> object:
        """What it sends; None if it has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """End it, in the midst of its work, too."""
        if self.number is None:
            self.pipe.close()
        else:
            self.process.terminate()
        self.process.join(_LEAVE)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _start(function: Function[Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(function, theirs), daemon=True)
    with _inherited():
        process.start()
    theirs.close()  # so that the pipe ends when the worker does
    return _Worker(process, ours)


@contextmanager
def _inherited() -> Iterator[None]:
    """What a new process inherits: it ignores Ctrl-C, which reaches all processes of a terminal, and uses one thread."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(function: Function[Any], pipe: Connection) -> None:
    """Do the jobs that arrive, until the other side ends."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())  # what it has locked is released
    while True:
        try:
            job = pipe.recv()
            function(job, lambda: pipe.send(_STEP))
            pipe.send(_DONE)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            pipe.send(error)
