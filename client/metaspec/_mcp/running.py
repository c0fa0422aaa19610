"""Tools that take long: optimisations and verifications. Both report progress, stop when they are cancelled, and resume.

One of them computes at a time; a further call waits. What is computed stays in the run folder, so that the same call, or the
same command of `metaspec optimise` or `metaspec-simulate verify`, resumes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from anyio import from_thread, to_thread
from anyio.abc import Process
from pydantic import Field

from metaspec import objectives, optimise
from metaspec._cli import runs
from metaspec._cli.starts import read_starts, start_settings, starting, starts_on
from metaspec._design.features import import_imageruler
from metaspec._design.filters import RADIUS_NM
from metaspec._mcp import answers
from metaspec._mcp.folder import BITS, Folder
from metaspec._mcp.limits import Limits
from metaspec._mcp.looking import Conditions, Model, Objective, Structures, laboratory
from metaspec._mcp.models import Models
from metaspec._mcp.tools import Tools
from metaspec._mcp.watching import Anything, Bar, OutOfTime, Watch
from metaspec._run_progress import recorded
from metaspec.conditions import at_conditions
from metaspec.designs import is_finished, write_designs
from metaspec_contract.files import write_array
from metaspec_contract.report_page import PAGE
from metaspec_contract.run_folder import VERIFY, VerifyReport, read_report

_GRACE = 5.0  # seconds for a simulation to end by itself

_ADVICE = "These are predictions: verify simulates the best designs with the solver."


class Running(Tools):
    """The tools that take long; see `Tools`."""

    def __init__(self, models: Models, folder: Folder, limits: Limits) -> None:
        super().__init__(models, folder, limits)
        self._one = anyio.Lock()

    async def optimise(
        self,
        context: Anything,
        folder: Annotated[
            str, Field(description="Run folder in the working folder; an unfinished run in it is resumed.")
        ],
        objective: Objective = "bayer",
        steps: Annotated[int, Field(description="Steps of the whole run.", ge=1)] = 60,
        starts: Annotated[int, Field(description="Starts, optimised in one batch.", ge=1)] = 4,
        start: Annotated[
            str | None,
            Field(description="File of structures in the working folder to start from; further starts are random."),
        ] = None,
        optimiser: Annotated[str, Field(description=f"One of {', '.join(optimise.NAMES)}.")] = "adam",
        radius_nm: Annotated[
            float, Field(description="Radius of the density filter: the length scale.", gt=0)
        ] = RADIUS_NM,
        symmetry: Literal["none", "diagonal"] = "none",
        min_feature_nm: Annotated[float, Field(description="Minimum width of solid and void; 0 for any.", ge=0)] = 0.0,
        seed: Annotated[int, Field(description="Seed of the random starts.", ge=0)] = 0,
        model: Model = None,
        conditions: Conditions = None,
    ) -> answers.Run:
        """Design colour routers. Answers after the server's limit of seconds at the latest: unfinished, repeat the same call.

        A finished run has designs as .npy, GDSII and pictures, and a report. `metaspec optimise` can resume the run, too.
        """
        self._limits.check("steps", steps, self._limits.steps)
        self._limits.check("starts", starts, self._limits.starts)
        work = partial(
            self._optimise,
            context,
            self._folder.run_folder(folder, "folder"),
            None if start is None else self._folder.inside(start, "start"),
            {"model": model or self._models.default, **({"conditions": conditions} if conditions else {})},
            runs.run_settings(
                objective=objective,
                steps=steps,
                starts=starts,
                optimiser=optimiser,
                radius_nm=radius_nm,
                symmetry=symmetry,
                min_feature_nm=min_feature_nm,
                seed=seed,
            ),
        )
        async with self._one:
            return await to_thread.run_sync(work)

    def _optimise(
        self, context: Anything, out: Path, start: Path | None, source: dict[str, Any], settings: dict[str, Any]
    ) -> answers.Run:
        """An optimisation, in a thread. The settings are those of `metaspec optimise`, which finds the same run."""
        name, steps, starts = self._folder.relative(out), settings["steps"], settings["starts"]
        goal = objectives.by_name(settings["objective"])
        drawings = read_starts(None if start is None else [start], None, "1/0")
        if (given_count := sum(drawing.count for drawing in drawings)) > starts:
            raise ValueError(f"starts must be at least the {given_count} structures of start, got {starts}")
        settings = {**settings, **start_settings(drawings, None, "1/0"), **source}
        if is_finished(out, settings):
            return answers.run_of(read_report(out), name, f"{name}/{PAGE}", steps, f"It was finished before. {_ADVICE}")
        import_imageruler()  # first needed at the end of the run
        surrogate = at_conditions(self._models.get(source["model"]), source.get("conditions"))
        info = surrogate.metadata()
        runs.check_objective(settings["objective"], goal, info)
        symmetry = None if settings["symmetry"] == "none" else settings["symmetry"]
        parameterisation = runs.parameterisation_for(info, settings["radius_nm"], symmetry, settings["min_feature_nm"])
        problem = optimise.Problem(surrogate, goal, parameterisation)
        given = starts_on(drawings, info.process, parameterisation) if drawings else None
        method, structure = starting(settings["optimiser"], starts, settings["seed"], info, parameterisation, given)
        runs.check_answers(surrogate, method.needs_gradient)
        with runs.working_in(out, settings):
            checkpoint, watch = out / runs.CHECKPOINT, Watch(context, self._limits.seconds)
            try:
                result = optimise.run(
                    problem,
                    method,
                    steps,
                    structure=structure,
                    checkpoint=checkpoint,
                    callback=recorded(out, watch),
                    progress=False,
                )
            except OutOfTime:
                return answers.Run(
                    folder=name,
                    finished=False,
                    step=watch.step,
                    steps=steps,
                    best=None if watch.best is None else answers.significant(watch.best),
                    designs=[],
                    count=0,
                    advice=f"{self._limits.seconds:g} s are over: the same call again resumes.",
                )
            write_designs(
                out,
                result,
                surrogate,
                objective=settings["objective"],
                settings=settings,
                seed=settings["seed"],
                advance=from_thread.check_cancelled,
            )
            checkpoint.unlink(missing_ok=True)
        return answers.run_of(read_report(out), name, f"{name}/{PAGE}", steps, _ADVICE)

    async def verify(
        self,
        context: Anything,
        structures: Structures,
        best: Annotated[int, Field(description="Number of structures, the first ones.", ge=1)] = 1,
        cells: Annotated[
            int, Field(description="Grid cells of the solver per period; 64 and more to trust.", ge=24)
        ] = 64,
    ) -> answers.Verification:
        """Simulate structures with the solver, and compare designs of a run folder with what was predicted for them.

        Takes seconds to minutes a structure, growing with the fourth power of the cells. Answers after the server's limit of
        seconds at the latest: unfinished, repeat the same call.
        """
        package = laboratory()
        if package is None:
            raise ImportError("verify needs the solver of metaspec-lab: pip install metaspec-lab", name="metaspec-lab")
        self._limits.check("best", best, self._limits.structures)
        self._limits.check("cells", cells, self._limits.cells)
        target, results = await to_thread.run_sync(self._to_verify, structures)
        command = [sys.executable, "-P", "-m", package, "verify", str(target), "--cells", str(cells)]
        command += ["--best", str(best), "--workers", str(self._limits.workers)]
        command += [] if target == results else ["--out", str(results)]
        async with self._one:
            done, total, finished = await self._simulate(context, command, best)
        name = self._folder.relative(results)
        if not finished:
            return answers.Verification(
                folder=name, finished=False, simulated=done, simulations=total, cells=cells, designs=[]
            )
        document = json.loads((results / VERIFY).read_text(encoding="utf-8"))
        return answers.verification(VerifyReport.model_validate(document), name, cells)

    def _to_verify(self, structures: str) -> tuple[Path, Path]:
        """What metaspec-simulate is given, and the folder of its results: the same for a run folder."""
        if structures.startswith(BITS):
            process = self._models.get(None).metadata().process
            given = self._folder.read(structures, None, process, self._limits.structures)
            digest = hashlib.sha256(given.density.tobytes()).hexdigest()[:12]
            target = self._folder.inside(f"structures-{digest}.npy", "structures")
            write_array(target, given.density.astype("uint8"))
        else:
            target = self._folder.inside(structures, "structures")
        if target.is_dir():
            return target, self._folder.run_folder(structures, "structures")
        if not target.exists():
            raise ValueError(f"structures: {target} is missing")
        return target, self._folder.run_folder(f"{target}-verified", "structures")

    async def _simulate(self, context: Anything, command: list[str], expected: int) -> tuple[int, int, bool]:
        """Run metaspec-simulate for at most the limit of seconds: simulations done, all of them, and whether it finished.

        Raises:
            ValueError: it refused; its message.
        """
        watch = Bar(context, expected)
        # It gets an empty input: that of this process is the client's.
        process = await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            with anyio.move_on_after(self._limits.seconds) as scope:
                assert process.stderr is not None
                await watch.read(process.stderr)
                await process.wait()
        finally:
            await _end(process)
        if scope.cancelled_caught:
            return watch.done, watch.total, False
        if process.returncode:
            raise ValueError(watch.message or f"metaspec-simulate ended with status {process.returncode}")
        return watch.total, watch.total, True


async def _end(process: Process) -> None:
    """End a process that runs still; what it has simulated is kept whole."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(_GRACE):
                await process.wait()
        if process.returncode is None:
            process.kill()
        await process.aclose()
