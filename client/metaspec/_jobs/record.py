"""`job.json` of a run folder: what `metaspec jobs` was asked to do in it. With the run itself, it is all that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from metaspec._jobs.settings import Command
from metaspec_contract.files import write_json
from metaspec_contract.run_folder import JOB
from metaspec_contract.validation import first_error


class JobRecord(BaseModel):
    """A job.

    Attributes:
        schema_version: version of this schema.
        command: command of the job.
        settings: its settings, see `metaspec._jobs.settings`; files relative to the folder of the service.
        created: time when it was made.
        queued: time when it was last put at the end of the queue.
        paused: whether it is to be paused.
        failed: why it ended without designs; null if it did not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    command: Command
    settings: dict[str, Any]
    created: AwareDatetime
    queued: AwareDatetime
    paused: bool = False
    failed: str | None = None


def read_record(folder: Path) -> JobRecord:
    """The record of a run folder.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is damaged; file and field are named.
    """
    path = folder / JOB
    try:
        return JobRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}") from None


def write_record(folder: Path, record: JobRecord) -> None:
    """Write the record of a run folder, replacing an existing one."""
    write_json(folder / JOB, record.model_dump(mode="json"))
