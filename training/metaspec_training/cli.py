"""`metaspec-train`: fit a network to a data set and report how good it is."""

from __future__ import annotations

import sys

import torch
from lightning.pytorch.cli import LightningCLI

from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.fit.live_weights import change_weights
from metaspec_training.fit.module import SpectraModule

_USAGE = """\
usage: metaspec-train fit --config FILE ...                        train, or go on with --ckpt_path RUN/checkpoints/last.ckpt
       metaspec-train report RUN [--split test ...]                    how good the run's best network is, as a page
       metaspec-train weights RUN [--w_grad 50 ...]                    change the loss weights of a running training
       metaspec-train designs --checkpoint FILE --out FILE.npy         structures optimised by a network, to simulate
Each of them has a --help of its own."""


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
    commands = {"fit": fit, "report": report, "weights": weights, "designs": designs}
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(_USAGE)
        raise SystemExit(0)
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print(_USAGE, file=sys.stderr)
        raise SystemExit(2)
    try:
        commands[sys.argv[1]](sys.argv[2:])
    except (ValueError, FileNotFoundError) as error:
        print(f"metaspec-train: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def report(arguments: list[str] | None = None) -> None:
    """Write the report of a run: errors, trivial predictors, plots."""
    from jsonargparse import auto_cli

    from metaspec_training.report.report import write_report

    auto_cli(write_report, args=arguments)


def designs(arguments: list[str] | None = None) -> None:
    """Optimise structures by the gradient of a checkpoint and save them."""
    from jsonargparse import auto_cli

    from metaspec_training.designs import make_designs

    auto_cli(make_designs, args=arguments, as_positional=False)


def weights(arguments: list[str] | None = None) -> None:
    """Show or change the loss weights of a running training."""
    from jsonargparse import auto_cli

    given = ["--" + a[2:].replace("-", "_") if a.startswith("--") else a for a in arguments or []]
    print(auto_cli(change_weights, args=given).model_dump_json(indent=2))
    print("The training takes them up at its next epoch.")


if __name__ == "__main__":
    main()
