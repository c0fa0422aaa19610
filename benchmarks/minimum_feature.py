"""What a minimum feature size costs: repaired after the run, or kept inside it.

    python benchmarks/minimum_feature.py --url http://127.0.0.1:8000 --widths 60,78,100,120

One run without the rule, whose designs are repaired to each width, and one run with it for each width, from the same
starts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from metaspec import Surrogate, objectives, optimise
from metaspec.designs import mended
from metaspec.topology import PIXEL_NM, Parameterisation, feature_size


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="diffractionnet")
    parser.add_argument("--widths", default="60,78,80,100,120", help="minimum widths in nm, separated by commas")
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--radius-nm", type=float, default=80.0)
    parser.add_argument("--out", type=Path, help="folder for the best designs, one .npy for each width")
    arguments = parser.parse_args()
    with Surrogate(arguments.url, model=arguments.model, batch_size=32, timeout=600, progress=False) as surrogate:
        info = surrogate.metadata()

        def run(width: float | None) -> tuple[optimise.Problem, optimise.Result, float]:
            parameterisation = Parameterisation(arguments.radius_nm, None, info.process.pixel_nm, width)
            problem = optimise.Problem(surrogate, objectives.by_name("bayer"), parameterisation)
            began = time.monotonic()
            result = optimise.run(problem, optimise.by_name("adam", arguments.starts), arguments.steps)
            return problem, result, time.monotonic() - began

        problem, free, seconds = run(None)
        print(f"{info.name} version {info.version}, {arguments.starts} starts, {arguments.steps} steps")
        print(f"without the rule: {free.spectra.min_efficiency().max():.3f} in {seconds:.0f} s\n")
        print("| width, nm | pixels | repaired after the run | before the refinement | end | seconds |")
        print("|---|---|---|---|---|---|")
        for width in map(float, arguments.widths.split(",")):
            after = mended(free, problem, width).spectra.min_efficiency().max()
            own, result, seconds = run(width)
            searched = surrogate.predict(own.parameterisation.binary(result.latent)).min_efficiency().max()
            assert all(min(feature_size(one, info.process.pixel_nm)) >= width for one in result.structure)
            best = result.spectra.min_efficiency()
            pixels = int(np.ceil(width / PIXEL_NM - 1e-9))
            print(
                f"| {width:g} | {pixels} | {after:.3f} | {searched:.3f} | {best.max():.3f} | {seconds:.0f} |",
                flush=True,
            )
            if arguments.out is not None:
                arguments.out.mkdir(parents=True, exist_ok=True)
                np.save(arguments.out / f"design_{width:g}nm.npy", result.structure[best.argmax()])


if __name__ == "__main__":
    main()
