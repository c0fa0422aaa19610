"""The optimisation loop: from latents to binary structures, many starts in parallel, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from metaspec.optimise import checkpoint as checkpoints
from metaspec.optimise.base import Array, Optimiser, digest
from metaspec.optimise.free_conditions import STEPPING, BatchConditions, varies_conditions
from metaspec.optimise.problem import Problem
from metaspec.optimise.record import History, Progress, Record, Result
from metaspec.optimise.refinement import Refined, Refinement
from metaspec.optimise.stopping import Patience, next_stage
from metaspec.topology import beta_schedule
from metaspec_contract.spectra import Spectra
from metaspec_contract.structures import check_binary, unpack

_BEFORE = -1  # number of the check before the first step
_STAGES = 8  # of the steepness: the objective is constant within a stage, as line searches require
# Shares of the steps after which a minimum feature size counts, and after which binary structures are refined.
_FREE, _BOUND = 0.55, 0.85


def run(
    problem: Problem,
    optimiser: Optimiser,
    steps: int = 200,
    *,
    betas: Sequence[float] | None = None,
    check_every: int = 5,
    patience: int | None = None,
    min_gain: float = 1e-3,
    structure: ArrayLike | None = None,
    conditions: Mapping[str, ArrayLike] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    save_every_s: float = 30.0,
    callback: Callable[[Progress], None] | None = None,
    progress: bool = True,
) -> Result:
    """Optimise, and keep the best binary structure of each row of the batch.

    Every `check_every` steps, and in the last one, the thresholded structures are evaluated too: binary structures are kept
    and ranked, not grey densities.

    Where the parameterisation has a minimum feature size, these structures are repaired before they are evaluated, densities
    that break it are penalised in the end (see `Problem.evaluate`), and the best structures are refined in the last 15 % of the
    steps (see `refine`). So all structures of the result have it. A gradient-free optimiser proposes repaired structures
    in all steps. With robust variants, a fabrication or penalties, there is no refinement.

    Free conditions of the problem (`Problem(free=...)`) move with the densities, each row's on their own, and stay at those of
    the best structure while that is refined.

    With `patience`, a stage of constant beta ends early where neither its densities nor the binary structures gain (see
    `metaspec.optimise.stopping`), and so does the run in its last stage, at the next evaluation of binary structures. The
    history has the steps that were made.

    Whatever ends a run early (Ctrl-C, loss of the server, an exception in the callback), its last complete step is saved to
    the checkpoint before the exception propagates. The same call then resumes exactly.

    Args:
        problem: problem to solve.
        optimiser: optimiser in its initial state.
        steps: number of steps.
        betas: steepness of the projection in each step, (steps,). By default 4 to 64 in eight stages for an optimiser
            with gradients, and infinite (binary structures) for a gradient-free one. With a minimum feature size and
            gradients, infinite means a step of the refinement.
        check_every: number of steps between evaluations of the thresholded structures.
        patience: number of steps without a gain after which a stage ends; None for never.
        min_gain: smallest rise of the objective that counts as a gain.
        structure: binary structures (M, y, x) that the rows start from. They are evaluated before the first step: the result
            is never worse than they are.
        conditions: values of conditions by name, (M,) or a number: where free ones start, instead of being spread over their
            intervals; others stay, one value for each row.
        checkpoint: path of the checkpoint, which is resumed if it exists.
        save_every_s: shortest time between two checkpoints in seconds.
        callback: callback after each step.
        progress: whether to show a progress bar in a terminal.

    Raises:
        ValueError: a setting is out of range, `checkpoint` is damaged or belongs to another run, or conditions are free and
            the optimiser cannot vary them.
        InvalidCondition: a condition is unknown or a vector, or a value is outside its range or its bounds.
        SourceError: the source failed.
    """
    if steps < 1 or check_every < 1:
        raise ValueError(f"steps and check_every must be at least 1, got {steps} and {check_every}")
    waiting = Patience(patience, min_gain)
    if problem.free and not varies_conditions(optimiser):
        kind = type(optimiser).__name__
        raise ValueError(f"free conditions need an optimiser of single gradient steps, {STEPPING}, got {kind}")
    with_rule = problem.parameterisation.min_feature_nm is not None
    refines = optimiser.needs_gradient and with_rule and problem.refinable
    if betas is None:
        betas = _default_betas(steps, with_rule, refines) if optimiser.needs_gradient else [np.inf] * steps
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
    if patience is not None:
        settings |= {"patience": patience, "min_gain": float(min_gain)}
    ends = {steps - 1, *(step - 1 for step in range(1, steps) if betas[step - 1] < betas[step] == np.inf)}
    checked = [step for step in range(steps) if step % check_every == 0 or step in ends]
    if conditions:
        settings["conditions"] = {name: digest(np.asarray(one, np.float64)) for name, one in conditions.items()}
    if structure is not None:
        known = check_binary(structure, shape[1:])
        if len(known) != shape[0]:
            raise ValueError(f"structure must have {shape[0]} rows, one for each row of the batch, got {len(known)}")
        settings["structure"] = digest(known)
        checked = [_BEFORE, *checked]
    info = problem.source.metadata()
    batch = BatchConditions(info.conditions, problem.free, conditions, shape[0])
    record = Record.empty(steps, len(checked), shape, info, len(batch.names))
    file = None if checkpoint is None else Path(checkpoint)
    done, spent = 0, np.zeros(3)
    refinement: Refinement | None = None
    if file is not None and file.exists():
        arrays = checkpoints.load(file, settings)
        done, spent = int(arrays["done"]), arrays["spent"]
        record.restore(arrays)
        optimiser.restore(_without_prefix(arrays, "optimiser."))
        waiting.restore(_without_prefix(arrays, "waiting."))
        batch.restore(_without_prefix(arrays, "conditions."))
        if state := _without_prefix(arrays, "refinement."):
            refinement = _refinement(problem, record, batch)
            refinement.restore(state)
    origin = _spent(problem) - spent

    def state_after(step: int) -> tuple[int, Array, dict[str, Array]]:
        arrays = _with_prefix(optimiser.state(), "optimiser.") | _with_prefix(waiting.state(), "waiting.")
        arrays |= _with_prefix(batch.state(), "conditions.")
        if refinement is not None:
            arrays |= _with_prefix(refinement.state(), "refinement.")
        return step, _spent(problem) - origin, arrays

    complete = state_after(done)  # one assignment: an interruption finds one complete step or the next

    def save() -> None:
        if file is not None:
            done, spent, state = complete
            checkpoints.save(file, settings, record.arrays() | state | {"done": np.array(done), "spent": spent})

    if structure is not None and not done:
        again = problem.score(optimiser.ask(), structure=known, conditions=batch.named(batch.ask()))
        record.check(
            0,
            checked.index(_BEFORE),
            latent=optimiser.ask(),
            structure=known,
            value=again.value,
            spectra=again.spectra,
            conditions=batch.ask(),
        )
    saved = time.monotonic()
    with tqdm(total=steps, initial=done, unit="step", disable=None if progress else True) as bar:
        try:
            step = done
            while step < steps:
                beta = betas[step]
                if refines and step and beta == np.inf:
                    refinement = refinement or _refinement(problem, record, batch)
                    _refine(problem, refinement)
                    latent, value, binary = record.latent, refinement.value, refinement.result()
                    objective, at = value, record.condition
                else:
                    if step and beta != betas[step - 1]:
                        optimiser.restart()
                    latent, at = optimiser.ask(), batch.ask()
                    named = batch.named(at)
                    if optimiser.needs_gradient:
                        score = problem.evaluate(latent, beta, step, named)
                    else:
                        score = problem.score(latent, beta, conditions=named)
                    value, objective = score.value, score.objective
                    if step in checked:
                        structure = problem.parameterisation.binary(latent)
                        again = score if beta == np.inf else problem.score(latent, np.inf, structure, named)
                        binary = Refined(structure, again.value, again.spectra)
                    optimiser.tell(value, score.gradient)
                    batch.tell(value, score.conditions)
                if step in checked:
                    record.check(step, checked.index(step), latent=latent, conditions=at, **binary._asdict())
                record.value[step], record.conditions[step] = objective, at
                following = next_stage(betas, step) if waiting.is_over(beta, value, record.best) else step + 1
                if following == steps and step not in checked:  # the last structures are evaluated, too
                    following = step + 1
                complete = state_after(following)
                if time.monotonic() - saved >= save_every_s:
                    save()
                    saved = time.monotonic()
                bar.set_postfix_str(f"best {record.best.max():.4f}", refresh=False)
                bar.update(following - step)
                if callback is not None:
                    best, structure = record.best.copy(), record.structure.copy()
                    named = batch.named(record.condition.copy())
                    callback(Progress(following, steps, beta, record.value[step].copy(), best, structure, named))
                step = following
        finally:
            save()
    return _result(record, betas, checked, complete[1], problem, batch)


def _default_betas(steps: int, with_rule: bool, refines: bool) -> list[float]:
    """Steepness of the projection in each step of an optimiser with gradients, in eight stages."""
    if not with_rule:
        return list(map(float, beta_schedule(steps, stages=_STAGES)))
    free, bound = int(_FREE * steps), int(np.ceil(_BOUND * steps)) if refines else steps
    searched = beta_schedule(free, last=16.0, stages=_STAGES // 2)
    kept = beta_schedule(bound - free, first=24.0, stages=_STAGES // 2)
    return [*searched.tolist(), *kept.tolist(), *[np.inf] * (steps - bound)]


def _refinement(problem: Problem, record: Record, batch: BatchConditions) -> Refinement:
    """The refinement of the best structures so far."""
    parameterisation = problem.parameterisation
    assert parameterisation.min_feature_nm is not None
    width, symmetry = parameterisation.min_feature_nm, parameterisation.symmetry
    conditions = batch.named(record.condition.copy())
    return Refinement(
        problem.source, problem.objective, record.structure, width, symmetry=symmetry, conditions=conditions
    )


def _refine(problem: Problem, refinement: Refinement) -> None:
    """One step of the refinement, counted like the problem's own calls."""
    structures, calls = refinement.structures_evaluated, refinement.server_calls
    refinement.step()
    problem.structures_evaluated += refinement.structures_evaluated - structures
    problem.server_calls += refinement.server_calls - calls


def _with_prefix(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {prefix + name: array for name, array in arrays.items()}


def _without_prefix(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _spent(problem: Problem) -> Array:
    """Structures evaluated, server calls and seconds."""
    return np.array([problem.structures_evaluated, problem.server_calls, time.monotonic()])


def _result(
    record: Record,
    betas: Sequence[float],
    checked: list[int],
    spent: Array,
    problem: Problem,
    batch: BatchConditions,
) -> Result:
    info = problem.source.metadata()
    order = np.argsort(-record.best, kind="stable")
    shape = record.structure.shape
    made = np.isfinite(record.value[:, 0])  # not the steps that the stop rule left out
    number = np.cumsum(made) - 1
    kept = [n for n, step in enumerate(checked) if step == _BEFORE or made[step]]
    steps = np.array([_BEFORE if checked[n] == _BEFORE else number[checked[n]] for n in kept])
    return Result(
        structure=record.structure[order],
        value=record.best[order],
        spectra=Spectra.of_model(record.spectra[order], info, str(record.version)),
        latent=record.latent[order],
        row=order,
        found=number[record.found[order]],
        history=History(
            np.array(betas, float)[made],
            record.value[made],
            steps,
            record.binary_value[kept],
            batch.named(record.conditions[made]),
        ),
        trajectory=unpack(record.bits[kept], (shape[1], shape[2])).reshape(-1, *shape[1:]),
        structures_evaluated=int(spent[0]),
        server_calls=int(spent[1]),
        wall_s=float(spent[2]),
        conditions=batch.named(record.condition[order]),
    )
