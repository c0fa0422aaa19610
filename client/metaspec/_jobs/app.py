"""The HTTP API of jobs, and its page."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from metaspec._jobs import events
from metaspec._jobs.body import json_object
from metaspec._jobs.documents import Documents
from metaspec._jobs.guard import Guard, same_token, session
from metaspec._jobs.jobs import Jobs, check_name
from metaspec._jobs.problems import HANDLED, Problem, problem_of
from metaspec._jobs.runner import Runner
from metaspec._jobs.settings import COMMANDS, check, fields
from metaspec_contract.report_page import PAGE
from metaspec_contract.run_folder import LOG, PROGRESS

_WEB = Path(__file__).parent / "web"
_ENDINGS = {".npy", ".gds", ".png", ".csv", ".json"}  # of files in a run folder that are sent
_NAMED = {LOG, PROGRESS}
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


class Service:
    """The routes.

    Args:
        jobs: the jobs of a folder.
        runner: what runs them.
        token: token that callers need; None for none.
        stopping: function that says whether the service ends.
    """

    def __init__(self, jobs: Jobs, runner: Runner, token: str | None, stopping: Callable[[], bool]) -> None:
        self._jobs, self._runner, self._token, self._stopping = jobs, runner, token, stopping
        self._documents = Documents(jobs)
        self._checking = asyncio.Lock()

    @property
    def routes(self) -> list[Route | Mount]:
        """Addresses and what answers them."""
        return [
            Route("/", self.page),
            Mount("/static", StaticFiles(directory=_WEB)),
            Route("/session", self.log_in, methods=["POST"]),
            Route("/options", self.options),
            Route("/events", self.events),
            Route("/jobs", self.list),
            Route("/jobs", self.create, methods=["POST"]),
            Route("/jobs/{name}", self.show),
            Route("/jobs/{name}", self.remove, methods=["DELETE"]),
            Route("/jobs/{name}/pause", self.pause, methods=["POST"]),
            Route("/jobs/{name}/resume", self.resume, methods=["POST"]),
            Route("/jobs/{name}/events", self.events_of_job),
            Route("/jobs/{name}/report", self.report),
            Route("/jobs/{name}/best.gds", self.best),
            Route("/jobs/{name}/{file}", self.file),
        ]

    async def page(self, request: Request) -> Response:
        """The page."""
        return FileResponse(_WEB / "index.html")

    async def log_in(self, request: Request) -> Response:
        """Give the page a cookie for the token, since a browser sends no headers of its own with links and events."""
        body = await json_object(request)
        sent = body.get("token")
        if set(body) != {"token"} or not isinstance(sent, str):
            raise Problem(
                422, f"token: expected it alone, as a text, got {', '.join(sorted(body)) or 'nothing'}", "token"
            )
        if not same_token(self._token, sent):
            raise Problem(401, "token: expected that of this service, got another", "token")
        answer = Response(status_code=204)
        if self._token is not None:
            name, value = session(self._token)
            answer.set_cookie(name, value, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer

    async def options(self, request: Request) -> Response:
        """The settings of each command."""
        return JSONResponse({command: [one.document() for one in fields(command).values()] for command in COMMANDS})

    async def list(self, request: Request) -> Response:
        """All jobs, ranked."""
        return JSONResponse({"jobs": self._documents.all()})

    async def show(self, request: Request) -> Response:
        """One job."""
        return JSONResponse(self._documents.one(request.path_params["name"]))

    async def create(self, request: Request) -> Response:
        """Make a job of the settings in the body."""
        body = await json_object(request)
        name, command = body.pop("name", None), body.pop("command", "optimise")
        if command not in COMMANDS:
            raise Problem(422, f"command: expected {' or '.join(COMMANDS)}, got {command!r:.60}", "command")
        if name is not None:
            try:
                check_name(name)
            except ValueError as error:
                raise Problem(422, str(error), "name") from None
        working = self._jobs.working
        async with self._checking:  # the command is called in a thread, once at a time
            await asyncio.to_thread(check, command, body, working, working.path / ".checked")
        job = self._jobs.create(name, command, body)
        self._changed()
        return JSONResponse(self._documents.one(job.name), 201, {"Location": f"jobs/{job.name}"})

    async def pause(self, request: Request) -> Response:
        """Pause a job: 202 while its process saves what it has."""
        job = self._jobs.pause(request.path_params["name"])
        self._changed()
        return JSONResponse(self._documents.one(job.name), 202 if job.state == "pausing" else 200)

    async def resume(self, request: Request) -> Response:
        """Put a job back into the queue."""
        job = self._jobs.resume(request.path_params["name"])
        self._changed()
        return JSONResponse(self._documents.one(job.name))

    async def remove(self, request: Request) -> Response:
        """Remove a job, with its folder."""
        name = request.path_params["name"]
        gone = self._jobs.remove(name)
        self._changed(name)
        await asyncio.to_thread(shutil.rmtree, gone, True)
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """Changes of the list, as server-sent events."""
        return _stream(events.of_all(self._documents, self._stopping))

    async def events_of_job(self, request: Request) -> Response:
        """Progress of a job, as server-sent events; 204, which ends the browser's attempts, where nothing more can come."""
        job = self._jobs.get(request.path_params["name"])
        last = request.headers.get("last-event-id", "0")
        if not (last.isascii() and last.isdigit() and len(last) < 16):
            raise Problem(400, f"Last-Event-ID: expected the number of an event, got {last!r:.60}", "Last-Event-ID")
        start, file = int(last), job.folder / PROGRESS
        if start and events.has_ended(self._documents.one(job.name)) and file.exists() and start == file.stat().st_size:
            return Response(status_code=204)
        return _stream(events.of_job(self._documents, job, start, self._stopping))

    async def report(self, request: Request) -> Response:
        """The page of a finished run."""
        path = self._sent(request.path_params["name"], PAGE)
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})

    async def best(self, request: Request) -> Response:
        """Layout of the best design of a finished run."""
        job = self._jobs.get(request.path_params["name"])
        if not job.finished:
            raise Problem(404, f"{job.name} has no designs yet: it is {job.state}")
        try:
            layout = self._documents.found(job).layout
        except ValueError as error:
            raise Problem(409, str(error)) from None
        return FileResponse(self._sent(job.name, layout), filename=f"{job.name}-{layout}")

    async def file(self, request: Request) -> Response:
        """A file of a run folder."""
        name, file = request.path_params["name"], request.path_params["file"]
        if Path(file).suffix not in _ENDINGS and file not in _NAMED:
            raise Problem(404, f"expected report, best.gds or a file of the run, got {file!r:.60}", "file")
        text = file in _NAMED or file.endswith(".csv")
        return FileResponse(self._sent(name, file), media_type="text/plain" if text else None)

    def _changed(self, removed: str | None = None) -> None:
        """Let the change of a job be seen and acted on at once."""
        self._documents.forget(removed)
        self._runner.wake()

    def _sent(self, name: str, file: str) -> Path:
        """Path of a file in a job's folder. An address has no slash in its name of a file.

        Raises:
            Problem: 404, there is none.
        """
        path = self._jobs.get(name).folder / file
        if path.is_symlink() or not path.is_file():
            raise Problem(404, f"{name} has no file {file!r:.60}", "file")
        return path


def create_app(
    jobs: Jobs,
    runner: Runner,
    *,
    token: str | None,
    host: str,
    stopping: Callable[[], bool],
    said: Callable[[str], Any],
) -> Starlette:
    """The application, which runs the jobs while it is served.

    Args:
        jobs: the jobs of a folder.
        runner: what runs them.
        token: token that callers need; None for none.
        host: address that the service listens at.
        stopping: function that says whether the service ends.
        said: function that is told how it ended.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(runner.run())
        try:
            yield
        finally:
            left = await runner.close()
            await running
            if left:
                said(f"{left} jobs still run: the next start finds them.")

    async def answer(request: Request, error: Exception) -> Response:
        return problem_of(error, request).response

    async def answer_mistake(request: Request, error: Exception) -> Response:
        return Problem(500, "a mistake of this program, which its log describes").response

    return Starlette(
        routes=Service(jobs, runner, token, stopping).routes,
        middleware=[Middleware(Guard, token=token, host=host)],
        exception_handlers=dict.fromkeys(HANDLED, answer),
        lifespan=lifespan,
    )


def _stream(content: AsyncIterator[str]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(content, media_type="text/event-stream", headers=headers)
