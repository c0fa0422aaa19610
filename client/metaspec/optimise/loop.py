"""The optimisation loop: from latents to binary structures, many starts in parallel, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from metaspec._spectra import Spectra
from metaspec.optimise import checkpoint as checkpoints
from metaspec.optimise.base import Array, Optimiser
from metaspec.optimise.problem import Problem
from metaspec.optimise.record import History, Progress, Record, Result
from metaspec.topology import beta_schedule
from metaspec_contract.structures import unpack

_STAGES = 8  # of the steepness: the objective is constant within a stage, as line searches require


def run(
    problem: Problem,
    optimiser: Optimiser,
    steps: int = 200,
    *,
    betas: Sequence[float] | None = None,
    check_every: int = 5,
    checkpoint: str | PathLike[str] | None = None,
    save_every_s: float = 30.0,
    callback: Callable[[Progress], None] | None = None,
    progress: bool = True,
) -> Result:
    """Optimise, and keep the best binary structure of each row of the batch.

    Every `check_every` steps, and in the last one, the thresholded structures are evaluated too: binary structures are kept
    and ranked, not grey densities.

    Whatever ends a run early (Ctrl-C, loss of the server, an exception in the callback), its last complete step is saved to
    the checkpoint before the exception propagates. The same call then resumes exactly.

    Args:
        problem: problem to solve.
        optimiser: optimiser in its initial state.
        steps: number of steps.
        betas: steepness of the projection in each step, (steps,). By default 4 to 64 in eight stages for an optimiser
            with gradients, and infinite (binary structures) for a gradient-free one.
        check_every: number of steps between evaluations of the thresholded structures.
        checkpoint: path of the checkpoint, which is resumed if it exists.
        save_every_s: shortest time between two checkpoints in seconds.
        callback: callback after each step.
        progress: whether to show a progress bar in a terminal.

    Raises:
        ValueError: a setting is out of range, or `checkpoint` is damaged or belongs to another run.
        MetaSpecError: a server call failed.
    """
    if steps < 1 or check_every < 1:
        raise ValueError(f"steps and check_every must be at least 1, got {steps} and {check_every}")
    if betas is None:
        stages = np.arange(steps) * _STAGES // steps
        betas = list(beta_schedule(_STAGES)[stages]) if optimiser.needs_gradient else [np.inf] * steps
    if len(betas) != steps or not min(betas) > 0:
        raise ValueError(f"betas must be {steps} positive numbers, one for each step, got {list(betas)}")
    shape = optimiser.ask().shape
    settings = {
        "problem": problem.settings(shape[0]),
        "optimiser": optimiser.settings,
        "steps": steps,
        "betas": [float(beta) for beta in betas],
        "check_every": check_every,
    }
    checked = [step for step in range(steps) if step % check_every == 0 or step == steps - 1]
    info = problem.surrogate.metadata()
    record = Record.empty(steps, len(checked), shape, info)
    file = None if checkpoint is None else Path(checkpoint)
    done, spent = 0, np.zeros(3)
    if file is not None and file.exists():
        arrays = checkpoints.load(file, settings)
        done, spent = int(arrays["done"]), arrays["spent"]
        record.restore(arrays)
        optimiser.restore(
            {name.removeprefix("optimiser."): a for name, a in arrays.items() if name.startswith("optimiser.")}
        )
    origin = _spent(problem) - spent
    complete = done, spent, optimiser.state()  # one assignment: an interruption finds one complete step or the next

    def save() -> None:
        if file is not None:
            done, spent, state = complete
            kept = {f"optimiser.{name}": array for name, array in state.items()}
            checkpoints.save(file, settings, record.arrays() | kept | {"done": np.array(done), "spent": spent})

    saved = time.monotonic()
    with tqdm(total=steps, initial=done, unit="step", disable=None if progress else True) as bar:
        try:
            for step in range(done, steps):
                beta = betas[step]
                if step and beta != betas[step - 1]:
                    optimiser.restart()
                latent = optimiser.ask()
                score = (problem.evaluate if optimiser.needs_gradient else problem.score)(latent, beta)
                if step in checked:
                    binary = score if beta == np.inf else problem.score(latent)
                    structure = problem.parameterisation.binary(latent)
                    record.check(
                        step,
                        checked.index(step),
                        latent=latent,
                        structure=structure,
                        value=binary.value,
                        spectra=binary.spectra,
                    )
                record.value[step] = score.value
                optimiser.tell(score.value, score.gradient)
                complete = step + 1, _spent(problem) - origin, optimiser.state()
                if time.monotonic() - saved >= save_every_s:
                    save()
                    saved = time.monotonic()
                bar.set_postfix_str(f"best {record.best.max():.4f}", refresh=False)
                bar.update()
                if callback is not None:
                    callback(Progress(step + 1, steps, beta, score.value, record.best.copy(), record.structure.copy()))
        finally:
            save()
    return _result(record, betas, checked, complete[1], problem)


def _spent(problem: Problem) -> Array:
    """Structures evaluated, server calls and seconds."""
    return np.array([problem.structures_evaluated, problem.server_calls, time.monotonic()])


def _result(record: Record, betas: Sequence[float], checked: list[int], spent: Array, problem: Problem) -> Result:
    info = problem.surrogate.metadata()
    order = np.argsort(-record.best, kind="stable")
    shape = record.structure.shape
    return Result(
        structure=record.structure[order],
        value=record.best[order],
        spectra=Spectra.of_model(record.spectra[order], info, str(record.version)),
        latent=record.latent[order],
        row=order,
        found=record.found[order],
        history=History(np.array(betas, float), record.value, np.array(checked), record.binary_value),
        trajectory=unpack(record.bits, (shape[1], shape[2])).reshape(-1, *shape[1:]),
        structures_evaluated=int(spent[0]),
        server_calls=int(spent[1]),
        wall_s=float(spent[2]),
    )
