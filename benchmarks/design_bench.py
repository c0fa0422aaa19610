"""Inverse design with and without a surrogate, with and without gradients, each with the same wall time.

Five methods, on the same objective, with the same minimum feature size inside the loop, on the cores of this machine:

- gradient, surrogate: Adam on all pixels through a running server, as `metaspec optimise`: batches of starts one after another;
- gradient, solver: the same starts and steps on the adjoint solver at 48 cells, as many at once as there are cores;
- surrogate, then polish: one batch of the first method, then `optimise.polish` of its best designs on the solver at 64 cells;
- CMA-ES, surrogate: 10 x 10 control points, gradient-free, through the server;
- CMA-ES, solver: the same with the same seed on the solver at 48 cells.

A start has as many steps as the time allows, judged by the first evaluation, but at most STEPS. The solver searches with the
decay bound of `metaspec polish`, is compiled before the clock starts, and remembers nothing from one run to the next. The best
structures of each run are then simulated at 80 cells with the default bound, and compared by their smallest colour
efficiency, min(R, G, B) with G = G1 + G2. Finished runs are stored in OUT: the same command resumes.

    python benchmarks/design_bench.py --out runs/design-bench [--minutes 2 5 15] [--methods gradient-surrogate gradient-solver]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from design_methods import JUDGED, METHODS, Search, run, unpacked
from matplotlib.figure import Figure

from metaspec import Surrogate
from metaspec.topology import feature_size
from metaspec_contract.files import write_json, write_text
from metaspec_contract.model import DEFAULT_MODEL
from metaspec_contract.source import Source
from metaspec_simulation.source import SolverSource
from metaspec_testing.servers import running_server

PUBLISHED = {"Zou et al. (2022)": 0.429, "best of the invrs-gym leaderboard": 0.551}

Results = dict[str, Any]


def judge(search: Search, exact: Source) -> dict[str, Any]:
    """Simulate what a run has found. Returns the results as JSON."""
    best = search.best(JUDGED)
    needed = list(dict.fromkeys([*best, *search.unpolished, *(end for _, end in search.ends.values())]))
    spectra = exact.predict(unpacked(needed))
    simulated = dict(zip(needed, spectra.min_efficiency().tolist(), strict=True))
    narrowest = min(min(feature_size(structure)) for structure in unpacked(best))
    if narrowest < search.arguments.min_feature_nm:
        raise RuntimeError(f"a structure is as narrow as {narrowest:.0f} nm: the minimum feature size was not kept")
    top = max(best, key=simulated.__getitem__)
    return {
        "seconds": search.seconds,
        "batches": search.batches,
        "predictions": sum(one.evaluated for one in search.sources if not one.metadata().simulated),
        "simulations": sum(one.evaluated for one in search.sources if one.metadata().simulated),
        "gradients": [one.gradients for one in search.sources],
        "own": [search.kept[bits] for bits in best],
        "simulated": [simulated[bits] for bits in best],
        "colours": spectra.colour_efficiency()[needed.index(top)].tolist(),
        "narrowest_nm": narrowest,
        "unpolished": [simulated[bits] for bits in search.unpolished],
        "ends": {str(start): [steps, simulated[end]] for start, (steps, end) in search.ends.items()},
        "curve": search.curve,
        "best": top.hex(),
    }


def report(stored: Results) -> str:
    """The table, one row for each method and budget, and what it says in sentences."""
    settings, cells = stored["settings"], stored["settings"]["cells"]
    rows = [
        "| method | minutes | took | starts x steps | predictions | simulations | gradients | by its own source "
        f"| min(R, G, B) simulated [{cells}] | s a start | narrowest |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, minutes, one in _runs(stored):
        top = int(np.argmax(one["simulated"]))
        batches = ", ".join(f"{starts} x {steps}" for starts, steps, _ in one["batches"])
        if method == "polish" and not one["unpolished"]:
            batches += ", no time to polish"
        pace = "" if method.startswith("cmaes") else f"{_seconds_a_start(one, settings['steps']):.3g}"
        columns = [
            METHODS[method],
            minutes,
            f"{one['seconds'] / 60:.2f}",
            batches,
            f"{one['predictions']:,}",
            f"{one['simulations']:,}",
            " + ".join(f"{number:,}" for number in one["gradients"]),
            f"{one['own'][top]:.3f}",
            f"{one['simulated'][top]:.3f}",
            pace,
            f"{one['narrowest_nm']:.0f} nm",
        ]
        rows.append("| " + " | ".join(columns) + " |")
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    return "\n".join([f"Settings: {told}\n", *rows, "", *_sentences(stored)]) + "\n"


def _runs(stored: Results) -> list[tuple[str, str, Results]]:
    """Method, minutes and results of each run, in the order of the methods, then of the minutes."""
    runs = stored["runs"]
    return [(m, t, runs[m][t]) for m in METHODS if m in runs for t in sorted(runs[m], key=float)]


def _seconds_a_start(one: Results, steps: int) -> float:
    """Seconds of a start with this many steps in the first phase of a run: those of shorter batches are scaled."""
    batches = one["batches"][:1] if one["unpolished"] else one["batches"]
    return float(steps * sum(seconds for *_, seconds in batches) / sum(starts * done for starts, done, _ in batches))


def _sentences(stored: Results) -> list[str]:
    """What a start costs and reaches on the surrogate and on the solver, and what polishing adds."""
    runs, steps, said = stored["runs"], stored["settings"]["steps"], []
    fast, exact = runs.get("gradient-surrogate", {}), runs.get("gradient-solver", {})
    if both := sorted(fast.keys() & exact.keys(), key=float):
        last = both[-1]
        costs = [_seconds_a_start(one[last], steps) for one in (exact, fast)]
        said.append(
            f"A start of {steps} steps takes {costs[0]:.3g} s by the adjoint solver and {costs[1]:.3g} s through the "
            f"surrogate: {costs[0] / costs[1]:.0f} times as long (in the {last} minutes of each)."
        )
        ends = [one[last]["ends"] for one in (exact, fast)]
        common = [start for start in ends[0] if start in ends[1] and ends[0][start][0] == ends[1][start][0]]
        if common:
            means = [np.mean([one[start][1] for start in common]) for one in ends]
            said.append(
                f"The first {len(common)} starts, of equally many steps, end at {means[0]:.3f} by the solver and at "
                f"{means[1]:.3f} through the surrogate on average: {means[0] - means[1]:+.3f}."
            )
        gains = [f"{max(exact[t]['simulated']) - max(fast[t]['simulated']):+.3f} in {t} minutes" for t in both]
        said.append(f"The best by the solver less the best through the surrogate: {', '.join(gains)}.")
    polished = dict(sorted(runs.get("polish", {}).items(), key=lambda run: float(run[0])))
    added = [
        f"{max(one['simulated']) - max(one['unpolished']):+.3f} in {t} minutes"
        for t, one in polished.items()
        if one["unpolished"]
    ]
    if added:
        said.append(f"Polishing adds to the best design of the surrogate: {', '.join(added)}.")
    return said


def draw(stored: Results, path: Path) -> None:
    """Draw the best simulated value against the budget, the longest runs over time, and the best design."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    by_budget, over_time, design = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 0.8))
    for number, (method, name) in enumerate(METHODS.items()):
        if runs := stored["runs"].get(method):
            budgets = sorted(runs, key=float)
            best, took = [max(runs[t]["simulated"]) for t in budgets], [runs[t]["seconds"] / 60 for t in budgets]
            by_budget.plot(took, best, "o-", color=f"C{number}", label=name)
            seconds, objective = np.array(runs[budgets[-1]]["curve"]).T
            over_time.plot(seconds / 60, objective, color=f"C{number}")
            over_time.plot(took[-1], best[-1], "*", ms=11, color=f"C{number}")
    for axes in (by_budget, over_time):
        for (name, value), style in zip(PUBLISHED.items(), ("--", ":"), strict=True):
            axes.axhline(value, color="0.4", ls=style, lw=1)
            axes.text(0.02, value + 0.004, name, color="0.3", fontsize=8, transform=axes.get_yaxis_transform())
    by_budget.set_xscale("log")
    ticks = sorted({float(minutes) for _, minutes, _ in _runs(stored)})
    by_budget.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    by_budget.minorticks_off()
    by_budget.set(xlabel="minutes", ylabel=f"min(R, G, B), simulated at {stored['settings']['cells']} cells")
    by_budget.legend(fontsize=8)
    over_time.set(xlabel="minutes", ylabel="objective; star: simulated min(R, G, B)")
    method, minutes, top = max(_runs(stored), key=lambda run: max(run[2]["simulated"]))
    [structure] = unpacked([bytes.fromhex(top["best"])])
    design.imshow(np.tile(structure, (2, 2)), cmap="binary", extent=(0, 4, 4, 0))
    title = f"best: {max(top['simulated']):.3f}, {METHODS[method]},\n{minutes} minutes; 2 x 2 periods"
    design.set(title=title, xlabel="um", ylabel="um")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 5.0, 15.0], help="wall times of each method")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--objective", default="bayer")
    parser.add_argument("--starts", type=int, default=16, help="of a batch on the surrogate; population of CMA-ES")
    parser.add_argument("--steps", type=int, default=120, help="largest number of steps of a start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--radius-nm", type=float, default=80.0)
    parser.add_argument("--min-feature-nm", type=float, default=78.0)
    parser.add_argument("--cells", type=int, default=80, help="grid of the final simulation")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.json"
    with (
        running_server() as server,
        Surrogate(server.url, batch_size=32, timeout=600, progress=False) as surrogate,
        SolverSource(cells=arguments.cells, cache=arguments.out / "simulated") as exact,
    ):
        details = surrogate.metadata().details
        weights = details.get("network_sha256", details["weights_sha256"])[:12]
        settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "minutes", "methods")}
        settings |= {"model": f"{DEFAULT_MODEL} {weights}", "solver": exact.metadata().version, "cores": exact.workers}
        stored = json.loads(file.read_text()) if file.exists() else {"settings": settings, "runs": {}}
        if stored["settings"] != settings:
            sys.exit(f"{file} was made with {stored['settings']}, not {settings}: choose another --out")
        for minutes in sorted(arguments.minutes):
            for method in arguments.methods:
                if (runs := stored["runs"].setdefault(method, {})).get(f"{minutes:g}") is None:
                    print(f"{METHODS[method]}, {minutes:g} minutes", flush=True)
                    search = run(method, minutes, surrogate, arguments)
                    runs[f"{minutes:g}"] = judge(search, exact)
                    write_json(file, stored)
    draw(stored, arguments.out / "design_bench.png")
    write_text(arguments.out / "design_bench.md", text := report(stored))
    print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted: repeat the command to resume.", file=sys.stderr)
        sys.exit(130)
