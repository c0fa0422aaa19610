"""`metaspec-train`: fit a network to a data set and report how good it is."""

from __future__ import annotations

import sys

import torch
from lightning.pytorch.cli import LightningCLI

from metaspec_training.data import SpectraDataModule
from metaspec_training.module import SpectraModule


def fit(arguments: list[str] | None = None) -> None:
    """Train as the command line says; `--help` lists every setting, `--print_config` writes them out as YAML.

    A run that was stopped goes on with the same command and `--ckpt_path RUN/last.ckpt`.
    """
    torch.set_float32_matmul_precision("high")
    LightningCLI(
        SpectraModule,
        SpectraDataModule,
        seed_everything_default=0,
        trainer_defaults={"reload_dataloaders_every_n_epochs": 1},  # each epoch draws its own translations
        args=["fit", *(sys.argv[1:] if arguments is None else arguments)],
    )


def main() -> None:
    """Entry point of the command."""
    commands = {"fit": fit, "report": report}
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(
            "usage: metaspec-train fit --config FILE ...\n       metaspec-train report --checkpoint FILE --data DIR --out DIR"
        )
        raise SystemExit(0)
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print("usage: metaspec-train {fit,report} ..., see --help", file=sys.stderr)
        raise SystemExit(2)
    try:
        commands[sys.argv[1]](sys.argv[2:])
    except (ValueError, FileNotFoundError) as error:
        print(f"metaspec-train: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def report(arguments: list[str] | None = None) -> None:
    """Write the report of a checkpoint: errors, trivial predictors, plots."""
    from jsonargparse import auto_cli

    from metaspec_training.report import write_report

    auto_cli(write_report, args=arguments, as_positional=False)


if __name__ == "__main__":
    main()
