"""`metaspec-train`: train a network, report its errors, steer a running training, make designs to simulate."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError

from metaspec_training import __version__

_USAGE = """\
usage: metaspec-train fit --config FILE ...                        train, or resume with --ckpt_path RUN/checkpoints/last.ckpt
       metaspec-train report RUN [--split test ...]                    errors of the run's best network, as a page
       metaspec-train weights RUN [--w_grad 50 ...]                    change the loss weights of a running training
       metaspec-train designs --checkpoint FILE --out FILE.npy         structures optimised by a network, to simulate
       metaspec-train convert STATE_DICT --preset baseline --out FILE  a checkpoint of your own implementation of the network
       metaspec-train --version
Each command has its own --help."""


_LONGEST = 60  # characters shown of a value


def fit(arguments: list[str]) -> None:
    """Train as the command line says; `--help` lists every setting, `--print_config` writes them as YAML.

    A run that was stopped resumes with the same command and `--ckpt_path RUN/checkpoints/last.ckpt`.
    """
    from metaspec_training.fit.run import run_training
    from metaspec_training.fit.stop import TrainingStopped

    try:
        run_training(arguments)
    except TrainingStopped as error:
        print(f"metaspec-train: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None


def report(arguments: list[str]) -> None:
    """Write the report of a run: errors, trivial predictors, gradients, plots."""
    from jsonargparse import auto_cli

    from metaspec_training.report.report import write_report

    auto_cli(write_report, args=arguments, exit_on_error=False)


def designs(arguments: list[str]) -> None:
    """Optimise structures by the gradient of a checkpoint and save them."""
    from jsonargparse import auto_cli

    from metaspec_training.designs import make_designs

    auto_cli(make_designs, args=arguments, as_positional=False, exit_on_error=False)


def weights(arguments: list[str]) -> None:
    """Show or change the loss weights and the clip norm of a running training."""
    from jsonargparse import auto_cli

    from metaspec_training.fit.weights import change_weights

    given = ["--" + a[2:].replace("-", "_") if a.startswith("--") else a for a in arguments]
    print(auto_cli(change_weights, args=given, exit_on_error=False).model_dump_json(indent=2))
    print("The training takes them up within some 50 steps, the curvature weight little by little.")


def convert(arguments: list[str]) -> None:
    """Convert a state dict of another implementation into a checkpoint."""
    from metaspec_training.convert import convert

    convert(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    commands = {"fit": fit, "report": report, "weights": weights, "designs": designs, "convert": convert}
    if command in ("-h", "--help"):
        print(_USAGE)
        return
    if command == "--version":
        print(f"metaspec-train {__version__}")
        return
    try:
        if command not in commands:
            raise ValueError(f"the command must be one of {', '.join(commands)}, got {command or 'none'}; see --help")
        commands[command](rest)
    except (ValueError, OSError, ArgumentError) as error:
        print(f"metaspec-train: {_in_short(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("metaspec-train: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _in_short(message: str) -> str:
    """A message in one line; of the parser's reasons why a value is of none of several types, the first."""
    before, several, after = message.partition("Does not validate against any of the Union subtypes")
    if several:
        reason = re.split(r"\n\s*- |\nGiven", after.partition("Errors:")[2].strip().removeprefix("- "))[0]
        value = after.rpartition("Given value: ")[2]
        message = f"{before}{reason}" + (f". Got value: {value}" if len(value) < _LONGEST else "")
    return " ".join(message.split())


if __name__ == "__main__":
    main()
