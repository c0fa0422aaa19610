"""The served models: loaded from the repository, replaced by newer versions, and restarted when an engine dies.

A new version is loaded and warmed up beside the old one. Then callers get the new one, in one step, and the old one finishes
the requests it has accepted and is unloaded. A version that cannot be loaded never replaces one that works, nor does one of
another device: versions of a model, and its forward and gradient model, predict the same device and channels.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from metaspec_contract.model import DEFAULT_MODEL, forward_model, gradient_model, is_gradient_model
from metaspec_server.blocking import in_thread
from metaspec_server.core.errors import StillLoading, UnknownModel
from metaspec_server.core.heap import trim_heap
from metaspec_server.core.served_model import Load, NotYet, ServedModel
from metaspec_server.repository import ModelFile, RepositoryError, Unreadable, read_repository

__all__ = ["Registry"]

log = logging.getLogger(__name__)

_NEVER = (-1,)  # the stamp of no file
_GRACE = 5.0  # seconds for a trial that was told to end

_Found: TypeAlias = dict[str, list[ModelFile]]  # versions on disk, newest first, by model


@dataclass(frozen=True)
class _Failure:
    stamp: tuple[int, ...] | None
    reason: str
    against: int | None = None  # number of the served model that it contradicts


class Registry:
    """The served models of a repository.

    A version that is loaded is checked against the next older one that is served and on disk (the next newer one if there is
    none), and a gradient model against its forward model, whichever is loaded later. Of versions that are loaded together,
    the older is taken as right. Versions that are not served are not compared: with `keep` 1, the newest is the only one
    that is loaded at start-up.

    What cannot be read does not count as removed: a model or version stays as it was loaded until it can be read again, and
    so do all when the repository is gone or empty, as an unmounted volume is. What does not answer cannot be read, either:
    it is waited for once, and then the other models are looked at again.

    Args:
        repository: folder of the models.
        keep: number of working versions of each model to serve, newest first.
        load: function that loads a version.
        drain_timeout: seconds for the accepted requests of a version that is unloaded.
        failed: function called with name, version (0 for the model as a whole) and reason when a version cannot be loaded.
        names: names of the models to serve; all if it is empty. `load` adds one.
        load_timeout: seconds to load a version; beyond that it is not served.
    """

    def __init__(
        self,
        repository: Path,
        keep: int,
        load: Load,
        drain_timeout: float = 30.0,
        failed: Callable[[str, int, str], None] = lambda name, version, reason: None,
        names: Sequence[str] = (),
        load_timeout: float = 120.0,
    ) -> None:
        self._repository, self._keep, self._load, self._load_timeout = repository, keep, load, load_timeout
        self._drain_timeout, self._failed = drain_timeout, failed
        self._models: dict[str, dict[int, ServedModel]] = {}  # newest version first
        self._failures: dict[tuple[str, int], _Failure] = {}
        self._news: list[tuple[str, int, str]] = []  # failures that are to be reported
        self._unreadable: dict[str, str] = {}  # reasons, by model
        self._problem: str | None = None  # reason why the whole repository cannot be read
        self._unloaded: set[str] = set()
        self._expected: list[str] = []  # models that the first refresh has not come to yet
        self._names = set(names)
        self._changing = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    def served(self) -> list[ServedModel]:
        """All loaded versions, by model, newest first."""
        return [model for versions in self._models.values() for model in versions.values()]

    def newest(self) -> list[ServedModel]:
        """The default version of each model: the newest that works."""
        return [next(iter(versions.values())) for versions in self._models.values()]

    @property
    def expected(self) -> list[str]:
        """Names of the models that are loaded at the start and have not been yet, in that order."""
        return list(self._expected)

    def expect(self, names: Iterable[str]) -> None:
        """Announce the models that the first `refresh` will load: until then, they are `StillLoading`, not unknown."""
        self._expected = sorted(set(names), key=_order)

    def failures(self) -> list[tuple[str, int, str]]:
        """Name, version and reason of each version that could not be loaded."""
        return [(name, version, failure.reason) for (name, version), failure in self._failures.items()]

    @property
    def unreadable(self) -> int:
        """Number of models and versions that cannot be read, and 1 if the whole repository cannot be, or is empty."""
        versions = [file for name, file in self._failures if file and self._failures[name, file].stamp is None]
        return len(self._unreadable) + len(versions) + (self._problem is not None)

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """A model by name, in its default version or in the given one.

        Raises:
            UnknownModel: it is not served.
            StillLoading: it is not served yet.
        """
        versions = self._models.get(name)
        if versions is None:
            if name in self._expected:
                raise StillLoading(name, len(self._models), len(self._models) + len(self._expected))
            there = ", ".join([*self._models, *self._expected])
            raise UnknownModel(f"no model {name!r} here; there is {there or 'none'}")
        if not version:
            return next(iter(versions.values()))
        for number, model in versions.items():
            if str(number) == version:
                return model
        raise UnknownModel(f"model {name!r} has no version {version!r} here; there is {', '.join(map(str, versions))}")

    @contextmanager
    def lease(self, name: str, version: str | None = None) -> Iterator[ServedModel]:
        """A model that stays loaded until the block ends, whatever is loaded or unloaded meanwhile.

        Raises:
            UnknownModel, StillLoading: it is not served (yet).
        """
        model = self.find(name, version)
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1
            if not model.users:
                model.idle.set()

    async def refresh(self, updated: Callable[[str], None] = lambda name: None) -> None:
        """Serve what the repository holds now: first the default model and its gradient model.

        Args:
            updated: function called with the name of each model that has been looked at.

        Raises:
            RepositoryError: the repository's folder is gone, unreadable or empty; the served models stay.
        """
        async with self._changing:
            found = await self._read()
            for name in [*(name for name in self._models if name not in found), *sorted(found, key=_order)]:
                if self._is_wanted(name):
                    await self._update(name, found)
                    self._expected = [other for other in self._expected if other != name]
                    updated(name)
            self._expected.clear()  # nor those whose folder is gone
            self._failures = {key: failure for key, failure in self._failures.items() if key[0] in found}

    async def load(self, name: str) -> None:
        """Load a model, also after `unload`, and retry versions that have failed.

        Raises:
            UnknownModel: it is not in the repository.
            RepositoryError: its newest version cannot be loaded.
        """
        async with self._changing:
            found = await self._read()
            if name not in found:
                raise UnknownModel(f"no model {name!r} in the repository; there is {', '.join(found) or 'none'}")
            if name in self._unreadable:
                raise RepositoryError(self._repository / name, self._unreadable[name])
            self._unloaded.discard(name)
            if self._names:
                self._names.add(name)
            self._failures = {key: failure for key, failure in self._failures.items() if key[0] != name}
            await self._update(name, found)
            newest = found[name][0].version if found[name] else 0
            if failure := self._failures.get((name, newest)):
                raise RepositoryError(self._repository / name, f"version {newest} cannot be loaded: {failure.reason}")

    async def unload(self, name: str) -> None:
        """Stop serving a model, until `load` is called.

        Raises:
            UnknownModel: it is not served.
        """
        async with self._changing:
            self.find(name)
            self._unloaded.add(name)
            self._install(name, {})

    async def watch(self, interval: float) -> None:
        """Look for changes in the repository every `interval` seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self.refresh()
            except (RepositoryError, OSError) as error:
                if str(error) != self._problem:  # said once
                    log.error("%s; what was loaded before stays", error)
                self._problem = str(error)
                continue
            if self._problem is not None:
                log.warning("%s can be read again", self._repository)
            self._problem = None

    async def supervise(self, interval: float, revived: Callable[[str, int], None]) -> None:
        """Replace engines that are dead or overdue, until cancelled. One that takes long holds up no other model.

        Args:
            interval: time between checks in seconds.
            revived: function called with the model's name and the number of replaced engines.
        """
        reviving: dict[int, asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(interval)
                reviving = {number: task for number, task in reviving.items() if not task.done()}
                for model in self.served():
                    if model.queue.missing and model.number not in reviving:
                        reviving[model.number] = asyncio.create_task(self._revive(model, revived))
        finally:
            for task in reviving.values():
                task.cancel()

    async def _revive(self, model: ServedModel, revived: Callable[[str, int], None]) -> None:
        try:
            count = await asyncio.wrap_future(in_thread(model.revive))
        except Exception as error:  # tried again after the interval
            if str(error) != model.trouble:
                log.error("the engines of %s version %d cannot be replaced: %s", model.name, model.version, error)
            model.trouble = str(error)
            return
        model.trouble = ""
        if count:
            log.error("%s version %d: %d engines that were dead or overdue replaced", model.name, model.version, count)
            revived(model.name, count)

    async def close(self, timeout: float) -> None:
        """Finish accepted work and stop."""
        models = self.served()
        self._models = {}
        await asyncio.gather(*(model.queue.close(timeout) for model in models), *self._leaving)

    async def _read(self) -> _Found:
        """Versions on disk, by model. Of one that cannot be read, those that were loaded.

        Raises:
            RepositoryError: the repository is gone, unreadable, or empty although models are served.
        """
        contents = await asyncio.wrap_future(in_thread(read_repository, self._repository))
        unreadable = {name: reason for name, reason in contents.unreadable.items() if self._is_wanted(name)}
        if self._models and not unreadable and not any(contents.models.values()):
            raise RepositoryError(self._repository, "is empty")
        for name in self._unreadable.keys() - unreadable.keys():
            self._failures.pop((name, 0), None)
            if name in contents.models:
                log.warning("%s can be read again", self._repository / name)
        self._unreadable = unreadable
        for name, reason in unreadable.items():
            self._note(name, 0, None, reason)
        self._report()
        return contents.models | {
            name: [model.file for model in self._models.get(name, {}).values()] for name in unreadable
        }

    def _is_wanted(self, name: str) -> bool:
        return name not in self._unloaded and (not self._names or name in self._names)

    async def _update(self, name: str, found: _Found) -> None:
        """Serve the newest working versions of a model. A file that fails leaves the loaded version in place.

        Args:
            name: name of the model.
            found: versions on disk.
        """
        files = found.get(name, [])
        kept: dict[int, ServedModel] = {}
        old = self._models.get(name, {})
        if files and name not in self._unreadable:
            self._failures.pop((name, 0), None)
        elif name in found and (name, 0) not in self._failures:
            self._note(name, 0, None, f"{self._repository / name}: has no version; expected a folder 1, 2, ... in it")
        numbers = {file.version for file in files}
        self._failures = {
            key: failure for key, failure in self._failures.items() if key[0] != name or key[1] in {0, *numbers}
        }
        for file in files:
            if len(kept) == self._keep:
                break
            model = old.get(file.version)
            if model is None or model.file.stamp != file.stamp:
                model = await self._try(file, found) or model
            elif self._failures.pop((name, file.version), None):
                log.warning("%s version %d is again the file that is loaded", name, file.version)
            if model is not None:
                kept = {number: newer for number, newer in kept.items() if not self._contradicts(newer, model)}
                kept[file.version] = model
        if name not in found:
            log.warning("%s is gone from the repository, and is unloaded", name)
        self._install(name, kept)
        self._report()

    async def _try(self, file: ModelFile, found: _Found) -> ServedModel | None:
        """Load a version, unless the same file has failed before and the reason persists."""
        key, failure = (file.name, file.version), self._failures.get((file.name, file.version))
        if failure is not None and failure.stamp == file.stamp:
            peers = {peer.number for peer in self._peers(file, found)}
            if failure.against is None or failure.against in peers:
                return None
        try:
            if file.problem is not None:
                raise RepositoryError(file.path, file.problem)
            model = await self._load_in_time(file)
        except Unreadable as error:
            self._note(file.name, file.version, None, str(error))
            return None
        except NotYet as error:
            self._note(file.name, file.version, _NEVER, str(error))
            return None
        except Exception as error:  # one bad version must not affect the others
            self._note(file.name, file.version, file.stamp, str(error))
            return None
        if any(self._contradicts(model, other) for other in self._peers(file, found)):
            return None
        failure = self._failures.pop(key, None)
        again = failure is not None and failure.stamp is None
        log.log(logging.WARNING if again else logging.INFO, "%s version %d is loaded", file.name, file.version)
        return model

    async def _load_in_time(self, file: ModelFile) -> ServedModel:
        """Load a version. One that takes too long goes on in its thread, and what becomes of it is dropped.

        Raises:
            RepositoryError: it cannot be loaded, or not in time.
        """
        loading = asyncio.wrap_future(in_thread(self._load, file))
        try:
            async with asyncio.timeout(self._load_timeout + _GRACE):
                return await asyncio.shield(loading)
        except TimeoutError:
            if loading.done():  # it is an error of its own
                raise
            raise RepositoryError(file.path, f"it has not been loaded within {self._load_timeout:g} s") from None
        finally:
            if not loading.done():
                loading.add_done_callback(self._drop)

    def _drop(self, loading: asyncio.Future[ServedModel]) -> None:
        """Unload what was loaded too late."""
        if not loading.cancelled() and loading.exception() is None:
            self._release(loading.result())

    def _current(self, name: str, found: _Found) -> list[ServedModel]:
        """Served versions of a model that are on disk, newest first, without those whose file has a successor to be loaded."""
        stamps = {file.version: file.stamp for file in found.get(name, [])}
        current = []
        for version, model in self._models.get(name, {}).items():
            failure = self._failures.get((name, version))
            loaded_or_failed = {model.file.stamp} if failure is None else {model.file.stamp, failure.stamp}
            if version in stamps and stamps[version] in loaded_or_failed:
                current.append(model)
        return current

    def _peers(self, file: ModelFile, found: _Found) -> list[ServedModel]:
        """What a version is checked against: the next older (or newer) one, and the newest of its forward or gradient model."""
        versions = self._current(file.name, found)
        older = [model for model in versions if model.version < file.version]
        newer = [model for model in versions if model.version > file.version]
        partner = forward_model(file.name) if is_gradient_model(file.name) else gradient_model(file.name)
        return [*(older[:1] or newer[-1:]), *self._current(partner, found)[:1]]

    def _contradicts(self, model: ServedModel, other: ServedModel) -> bool:
        """Whether a loaded version contradicts another one. If so, it has failed and is unloaded."""
        try:
            model.check_against(other)
        except RepositoryError as error:
            self._note(model.name, model.version, model.file.stamp, str(error), other.number)
            if model not in self.served():
                self._release(model)
            return True
        return False

    def _note(
        self, name: str, version: int, stamp: tuple[int, ...] | None, reason: str, against: int | None = None
    ) -> None:
        known = self._failures.get((name, version))
        self._failures[name, version] = _Failure(stamp, reason, against)
        if known is None or known.reason != reason:
            self._news.append((name, version, reason))

    def _report(self) -> None:
        """Report the failures since the last report. What is served by then is what stays."""
        news, self._news = self._news, []
        for failure in news:
            self._failed(*failure)

    def _install(self, name: str, versions: dict[int, ServedModel]) -> None:
        """Serve these versions from now on; the others finish their requests and are unloaded."""
        old = list(self._models.get(name, {}).values())
        if versions:
            self._models[name] = versions
        else:
            self._models.pop(name, None)
        for model in old:
            if model not in versions.values():
                self._release(model)

    def _release(self, model: ServedModel) -> None:
        task = asyncio.create_task(self._retire(model))
        self._leaving.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        in_thread(trim_heap)  # only now is the model gone

    async def _retire(self, model: ServedModel) -> None:
        try:
            async with asyncio.timeout(self._drain_timeout):
                while model.users:
                    model.idle.clear()
                    await model.idle.wait()
        except TimeoutError:
            log.warning("%s version %d is unloaded with %d requests unfinished", model.name, model.version, model.users)
        await model.queue.close(self._drain_timeout)
        log.info("%s version %d is unloaded", model.name, model.version)


def _order(name: str) -> tuple[bool, str, bool]:
    """Order of the models in which they are loaded: the default one, the others by name, each before its gradient model."""
    forward = forward_model(name)
    return forward != DEFAULT_MODEL, forward, is_gradient_model(name)
