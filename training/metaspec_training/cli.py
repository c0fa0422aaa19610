"""`metaspec-train`: train a network, report its errors, steer a running training, make designs to simulate."""

from __future__ import annotations

import sys
import warnings
from argparse import ArgumentError
from pathlib import Path

from metaspec_training import __version__

_USAGE = """\
usage: metaspec-train fit --config FILE ...                        train, or resume with --ckpt_path RUN/checkpoints/last.ckpt
       metaspec-train report RUN [--split test ...]                    errors of the run's best network, as a page
       metaspec-train weights RUN [--w_grad 50 ...]                    change the loss weights of a running training
       metaspec-train designs --checkpoint FILE --out FILE.npy         structures optimised by a network, to simulate
       metaspec-train --version
Each command has its own --help."""


def fit(arguments: list[str]) -> None:
    """Train as the command line says; `--help` lists every setting, `--print_config` writes them as YAML.

    A run that was stopped resumes with the same command and `--ckpt_path RUN/checkpoints/last.ckpt`.
    """
    import torch
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from metaspec_training.data.datamodule import SpectraDataModule
    from metaspec_training.fit.module import SpectraModule

    class TrainingCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.provenance", "model.provenance", apply_on="instantiate")

        def before_instantiate_classes(self) -> None:
            settings = self.config.fit
            if not settings.model.preset:
                files = [Path(str(file)).stem for file in settings.config or [] if file is not None]
                settings.model.preset = "+".join(files)

    warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # they are those of the command line
    torch.set_float32_matmul_precision("high")
    try:
        TrainingCLI(
            SpectraModule,
            SpectraDataModule,
            seed_everything_default=0,
            trainer_defaults={"reload_dataloaders_every_n_epochs": 1},  # each epoch draws its own translations
            parser_kwargs={"exit_on_error": False},
            args=["fit", *arguments],
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


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
    """Show or change the loss weights of a running training."""
    from jsonargparse import auto_cli

    from metaspec_training.fit.live_weights import change_weights

    given = ["--" + a[2:].replace("-", "_") if a.startswith("--") else a for a in arguments]
    print(auto_cli(change_weights, args=given, exit_on_error=False).model_dump_json(indent=2))
    print("The training reads them at the start of its next epoch.")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    commands = {"fit": fit, "report": report, "weights": weights, "designs": designs}
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
        print(f"metaspec-train: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("metaspec-train: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
