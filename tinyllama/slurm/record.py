"""What is remembered of a submission, beside the run that it is to train."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tinyllama.checkpoint.files import write_durably
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.errors import DamageError
from tinyllama.slurm import client
from tinyllama.slurm.client import QueuedJob

NOT_QUEUED = ""


@dataclass(frozen=True)
class JobRecord:
    """A job that was submitted for a run."""

    id: str
    """NOT_QUEUED until SLURM has taken the job."""
    name: str
    digest: str
    """Of the run."""
    variants: tuple[str, ...]
    """Those whose path leads through it."""
    depends_on: str | None
    """The job whose success it waits for."""
    submitted: str
    """When, ISO 8601."""
    overrides: tuple[str, ...]
    """What was typed."""
    code: str
    """The folder of the code that it runs."""


def write_record(folder: RunFolder, record: JobRecord) -> None:
    folder.job.mkdir(parents=True, exist_ok=True)
    write_durably(folder.job_record, json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n")


def read_record(folder: RunFolder) -> JobRecord | None:
    """The record of the last submission; None where there was none.

    Raises:
        DamageError: it cannot be understood.
    """
    try:
        fields: dict[str, Any] = json.loads(folder.job_record.read_bytes())
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return JobRecord(**{**fields, **lists})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamageError(
            f"{folder.job_record} cannot be read ({type(error).__name__}: {error}); when no job of this run is in the "
            f"queue any more, remove it"
        ) from error


def live_jobs(folders: Mapping[str, RunFolder]) -> dict[str, QueuedJob]:
    """The jobs of these runs that wait, run or are ending, by the runs' keys.

    Raises:
        ConfigError: SLURM does not answer.
        DamageError: a record cannot be understood.
    """
    read = {key: read_record(folder) for key, folder in folders.items()}
    records = {key: record for key, record in read.items() if record is not None and record.id != NOT_QUEUED}
    if not records or not client.available():
        return {}
    found = client.queue({record.id for record in records.values()})
    # Ids begin anew some day: a job of another name has only taken the number over.
    return {
        key: found[record.id]
        for key, record in records.items()
        if record.id in found and found[record.id].name == record.name
    }
