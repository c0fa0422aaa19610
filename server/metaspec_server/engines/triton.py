"""The Triton engine: this server is a stateless front, and one or several Triton servers compute, over gRPC.

All read the same model repository: the metadata of a model come from its file, and Triton computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from metaspec_server.core.batching import MicroBatch
from metaspec_server.core.engine import Description
from metaspec_server.core.served_model import Load, NotYet, ServedModel
from metaspec_server.core.statistics import Statistics
from metaspec_server.engines.fleet import Fleet, Member
from metaspec_server.engines.onnx_session import describe
from metaspec_server.engines.triton_connection import connect_probe, largest_batch, try_on
from metaspec_server.engines.triton_queue import TritonQueue
from metaspec_server.repository import ModelFile
from metaspec_server.settings import Settings

__all__ = ["triton_loader"]


def triton_loader(settings: Settings, observe: Callable[[str], Callable[[MicroBatch], None]]) -> Load:
    """Function that loads a version which Triton servers compute.

    Args:
        settings: settings of the server.
        observe: for a model's name, the function that is called with each request to Triton.
    """
    url = settings.triton_url
    fleet, waiting = Fleet(url.split(","), connect_probe), False

    def load(file: ModelFile) -> ServedModel:
        nonlocal waiting
        fleet.enter()
        try:
            first, about, max_batch = _first(fleet, file, url, settings.load_deadline)
        except BaseException:
            if waiting:
                fleet.leave()
            waiting = True  # the fleet is watched until a version can be served
            raise
        if waiting:
            fleet.leave()
            waiting = False
        statistics = Statistics()
        queue = TritonQueue(
            fleet=fleet,
            file=file,
            about=about,
            first=first,
            max_batch=max_batch,
            max_queue=settings.max_queue,
            in_flight=settings.triton_in_flight,
            call_timeout=settings.engine_deadline,
            observe=statistics.beside(observe(file.name)),
        )
        return ServedModel(file, about, queue, 1, queue.revive, statistics)

    return load


def _first(fleet: Fleet, file: ModelFile, url: str, timeout: float) -> tuple[Member, Description, int]:
    """A Triton that serves a version, its description and the largest batch there. The others join later.

    Args:
        fleet: the Tritons.
        file: file of the version.
        url: their addresses.
        timeout: seconds for a trial batch: Triton may compile the model for its size first.

    Raises:
        NotYet: none of them serves it.
        RepositoryError: the model does not fit its metadata.
    """
    for member in fleet.members:
        with suppress(NotYet):
            if member.alive:
                max_batch = largest_batch(member, file)
                about = describe(file, f"Triton at {url}")
                try_on(member, file, about, (1, max_batch), timeout)
                return member, about, max_batch
    raise NotYet(file.path, f"Triton at {url} does not serve version {file.version} (yet)")
