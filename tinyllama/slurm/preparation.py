"""Prepare corpora on a cluster: of each an array of tasks makes the parts, and a job after it joins them.

`{paths.data}/preparation/{tokenizer}-{seq_len}/{corpus}/` holds what was submitted: `job.json` (the record), the
scripts, the frozen `config.yaml`, and `logs/`.
"""

import fcntl
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tinyllama import signals
from tinyllama.checkpoint.files import write_durably
from tinyllama.config.corpora import chosen_corpora
from tinyllama.config.load import to_yaml
from tinyllama.config.schema import Format, PrepareAction, RunConfig
from tinyllama.data.prepare import missing_parts
from tinyllama.data.recipe import Work, lay_out
from tinyllama.errors import ConfigError
from tinyllama.slurm import client
from tinyllama.slurm.preparation_script import PreparationSpec, preparation_script
from tinyllama.slurm.snapshot import freeze_code

RECORD = "job.json"


@dataclass(frozen=True)
class PreparationJob:
    """A job that was submitted: the tasks that make parts of a corpus, or the one that joins them."""

    id: str
    name: str
    corpus: str
    parts: str
    depends_on: str | None
    log: str


def submit_preparation(config: RunConfig, overrides: Sequence[str], tasks: int) -> None:
    """Submit the preparation of the corpora that the overrides name; what is prepared or at work is not submitted.

    Args:
        tasks: among how many the parts of a corpus are shared, at most.

    Raises:
        ConfigError: another action than preparing, no raw files, no sbatch, or SLURM refuses a job; then nothing of
            this call stays in the queue.
    """
    if config.action is not PrepareAction.prepare:
        raise ConfigError(f"action={config.action.value} is done on this machine: add hydra/launcher=local")
    if tasks < 1:
        raise ConfigError(f"hydra.launcher.tasks={tasks} must be above 0")
    client.require_available()
    works = [
        lay_out(corpus, config.tokenizer, config.packing.seq_len, config.paths.data)
        for corpus in chosen_corpora(config, overrides)
    ]
    jobs: list[PreparationJob] = []
    with _alone(Path(config.paths.data)), _all_or_none(jobs):
        for work in works:
            name, alive = work.recipe.corpus.name, _alive(work)
            if alive:
                _say(f"{name}: {' and '.join(alive)} in the queue already; nothing was submitted")
            elif (missing := missing_parts(work)) is None:
                _say(f"{name}: already prepared")
            else:
                _submit(config, work, missing, tasks, jobs)
    if config.format is Format.json:
        print(json.dumps([asdict(job) for job in jobs]))
    elif jobs:
        _print_table(jobs)


def _submit(config: RunConfig, work: Work, missing: Sequence[int], tasks: int, jobs: list[PreparationJob]) -> None:
    """Queue the jobs that a corpus still needs; each is added to `jobs` at once."""
    folder, corpus = _folder(work), work.recipe.corpus.name
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    slurm, data = config.cluster.slurm, work.data.resolve()
    python = slurm.python or ("python3" if slurm.container is not None else sys.executable)
    join = PreparationSpec(corpus, folder, data, freeze_code(data), Path.cwd(), python)
    if missing:
        shares = min(tasks, len(work.parts))
        indices = tuple(sorted({number % shares for number in missing}))
        array = replace(join, indices=indices, shares=shares)
        _queue(config, array, f"{len(missing)} of {len(work.parts)}, by {len(indices)} tasks", jobs)
        join = replace(join, depends_on=jobs[-1].id)
    _queue(config, join, "joins them", jobs)
    _write_record(folder, [job for job in jobs if job.corpus == corpus])


def _queue(config: RunConfig, spec: PreparationSpec, parts: str, jobs: list[PreparationJob]) -> None:
    script = spec.folder / f"{spec.name}.sh"
    script.write_text(preparation_script(config.cluster, spec), encoding="utf-8")
    with signals.held_back():  # what is in the queue is known, whenever Ctrl-C comes
        job = client.submit(script)
        log = str(spec.log).replace("%A", job).replace("%a", "*").replace("%j", job)
        jobs.append(PreparationJob(job, spec.name, spec.corpus, parts, spec.depends_on, log))


# ---------------------------------------------------------------- what was submitted before


def _folder(work: Work) -> Path:
    """Of what concerns the jobs of a corpus."""
    return work.data.resolve() / "preparation" / work.folder.parent.name / work.folder.name


def _write_record(folder: Path, jobs: Sequence[PreparationJob]) -> None:
    submitted = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"submitted": submitted, "jobs": {job.id: job.name for job in jobs}}, indent=1)
    write_durably(folder / RECORD, text + "\n")


def _alive(work: Work) -> list[str]:
    """Jobs of an earlier submission that wait or run, in words."""
    try:
        jobs: dict[str, str] = json.loads((_folder(work) / RECORD).read_bytes())["jobs"]
    except FileNotFoundError:
        return []
    queued = client.queue(jobs)
    return [
        f"job {job} ({name}, {queued[job].state})"
        for job, name in jobs.items()
        if job in queued and queued[job].name == name  # an id can be another's by now
    ]


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """One submission at a time."""
    folder = data / "preparation"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _all_or_none(jobs: Sequence[PreparationJob]) -> Iterator[None]:
    """Cancel what was submitted when the rest cannot be."""
    try:
        yield
    except BaseException:
        client.cancel([job.id for job in jobs])
        raise


# ---------------------------------------------------------------- for people


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _print_table(jobs: Sequence[PreparationJob]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "name", "parts", "depends on", "log", box=None, pad_edge=False)
    for job in jobs:
        table.add_row(job.id, job.name, job.parts, job.depends_on or "", job.log)
    Console(stderr=True, width=None if sys.stderr.isatty() else 200, highlight=False).print(table)
    _say(f"To stop them: scancel {' '.join(job.id for job in jobs)}")
