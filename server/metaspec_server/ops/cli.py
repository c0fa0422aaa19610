"""`metaspec-serve`: serve a model repository.

What a server needs is imported once the settings are valid, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from metaspec_contract.validation import reason
from metaspec_server import __version__
from metaspec_server.blocking import leave_if_hanging
from metaspec_server.settings import Settings

__all__ = ["main"]

_DESCRIPTION = (
    "Serve the models of a repository. Each setting is a flag (--max-batch 64), an environment variable "
    "(METASPEC_MAX_BATCH=64), or a line of the file .env."
)


def main() -> None:
    """Run the command. When it cannot serve, it prints one line to standard error and exits with status 2."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report its use to its makers
    try:
        settings = _read_settings()
        from metaspec_server.ops.serving import REFUSALS, serve

        try:
            serve(settings)
        except REFUSALS as error:
            _fail(str(error))
    except KeyboardInterrupt:  # Ctrl-C has shut the server down in good order
        raise SystemExit(130) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _read_settings() -> Settings:
    parser = _Parser(prog="metaspec-serve", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"metaspec-serve {__version__}")
    try:
        source = CliSettingsSource[argparse.ArgumentParser](Settings, root_parser=parser)
        return CliApp.run(Settings, cli_settings_source=source)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        _fail(f"--{str(first['loc'][0]).replace('_', '-')}: {reason(first)}")
    except (SettingsError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"metaspec-serve: {message}", file=sys.stderr)
    leave_if_hanging(2)
    raise SystemExit(2)
