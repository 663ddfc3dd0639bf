"""Submit a tree of runs to SLURM: parents first, each run once, and all of them or none."""

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from types import FrameType

from tinyllama import signals
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.schema import ClusterConfig, RunConfig
from tinyllama.errors import ConfigError, Stopped
from tinyllama.planning.tree import Node
from tinyllama.slurm import client
from tinyllama.slurm.record import NOT_QUEUED, JobRecord, live_jobs, write_record
from tinyllama.slurm.script import JobSpec, run_script
from tinyllama.slurm.snapshot import freeze_code, freeze_path


@dataclass(frozen=True)
class Place:
    """Where a node of the tree stands once the tree is submitted."""

    node: Node
    job: str | None = None
    """Its job in the queue; None for what is done, and for an ancestor that nobody asked for."""
    depends_on: str | None = None
    """The job that its own waits for."""
    new: bool = False
    """Whether it was submitted now, and not before."""

    @property
    def folder(self) -> RunFolder:
        return folder_of(self.node)


def require_slurm(nodes: Sequence[Node]) -> None:
    """What must be said, and be there, before anything can be submitted.

    Raises:
        ConfigError: sbatch is missing, or it is not said how many ranks a node is to run.
    """
    client.require_available()
    for node in nodes:
        if (cluster := node.config.cluster).processes is None:
            raise ConfigError(
                f"cluster.processes=null (cluster={cluster.name}) counts the GPUs of this machine, which tell nothing "
                f"of those of the cluster's nodes; set cluster.processes to the ranks per node, one per GPU"
            )


def live(nodes: Sequence[Node]) -> dict[str, client.QueuedJob]:
    """The jobs of these nodes that SLURM has, by digest."""
    return live_jobs({node.plan.digest: folder_of(node) for node in nodes})


def submit_tree(nodes: Sequence[Node]) -> list[Place]:
    """Queue the nodes that were asked for and are neither done nor queued; each waits for its parent's job.

    Args:
        nodes: a whole tree, parents before children.

    Raises:
        ConfigError: a job of the tree is about to end, or SLURM refuses one; then none of this call stays in the queue.
        Stopped: so it was asked, by a signal; likewise.
    """
    with _alone(nodes), _noting_signals() as noted, _all_or_none() as begun:
        configs = {node.plan.digest: node.config for node in nodes}
        code = cache(freeze_code)
        jobs, places = _ids(nodes), []
        for node in nodes:
            folder, depends_on = folder_of(node), _awaited(node, jobs)
            queued_before = jobs.get(node.plan.digest)
            if folder.status is Status.done or queued_before is None and node.overrides is None:
                places.append(Place(node))
            elif queued_before is not None:
                places.append(Place(node, queued_before, depends_on))
            else:
                begun[folder] = None
                path = [configs[plan.digest] for plan in node.plan.path]
                jobs[node.plan.digest] = begun[folder] = _submit(node, path, code(folder.path.parent), depends_on)
                places.append(Place(node, begun[folder], depends_on, new=True))
            if noted:
                raise Stopped("stopped; what had been submitted is cancelled, and the same command submits it again")
    return places


def folder_of(node: Node) -> RunFolder:
    """Its path is absolute: jobs run anywhere."""
    return RunFolder.of(Path(node.config.paths.runs).absolute(), node.plan)


def _ids(nodes: Sequence[Node]) -> dict[str, str]:
    """Of the jobs that these nodes have in the queue already, by digest."""
    jobs = live(nodes)
    for node in nodes:
        folder, job = folder_of(node), jobs.get(node.plan.digest)
        if job is None or folder.status is Status.done:
            continue
        if job.state == "COMPLETING" or folder.job_leaving.exists():  # it may seem to run for as long as it saves
            raise ConfigError(
                f"job {job.id} of {node.plan.name} was asked to leave, or is ending, and is not gone yet; submit again "
                f"when it is: squeue --jobs={job.id}"
            )
    return {digest: job.id for digest, job in jobs.items()}


def _awaited(node: Node, jobs: Mapping[str, str]) -> str | None:
    """The job of the parent, while it has one and what the node starts from does not stand."""
    parent = node.plan.parent
    return None if parent is None or _start(node).exists() else jobs.get(parent.digest)


def _start(node: Node) -> Path:
    """What stands on disk when a node with a parent can begin: the parent's mark, or the checkpoint to fork from."""
    parent = node.plan.parent
    assert parent is not None
    folder = RunFolder.of(Path(node.config.paths.runs).absolute(), parent)
    return folder.done if node.plan.start_tokens == parent.end_tokens else folder.checkpoint(node.plan.start_tokens)


def _submit(node: Node, path: Sequence[RunConfig], code: Path, depends_on: str | None) -> str:
    """Write all that the job needs and queue it; its id."""
    folder, plan = folder_of(node), node.plan
    shutil.rmtree(folder.job, ignore_errors=True)
    folder.logs.mkdir(parents=True, exist_ok=True)
    freeze_path(folder, path)
    job = JobSpec(
        name=plan.name,
        run=folder.path,
        code=code,
        directory=Path.cwd(),
        python=_python(node.config.cluster),
        paths=_paths(path),
        needs=None if plan.parent is None else _start(node),
        depends_on=depends_on,
    )
    folder.job_script.write_text(run_script(node.config.cluster, job), encoding="utf-8")
    record = JobRecord(
        id=NOT_QUEUED,
        name=job.name,
        digest=plan.digest,
        variants=node.variants,
        depends_on=depends_on,
        submitted=datetime.now().astimezone().isoformat(timespec="seconds"),
        overrides=node.overrides or (),
        code=str(code),
    )
    write_record(folder, record)  # before there is a job that could miss it
    record = replace(record, id=client.submit(folder.job_script))
    write_record(folder, record)
    return record.id


def _paths(path: Sequence[RunConfig]) -> tuple[Path, ...]:
    """The folders that runs of these configs read and write."""
    folders = [
        folder
        for config in path
        for folder in (config.paths.runs, config.paths.data, Path(config.tokenizer.path).parent, config.stage.origin)
        if folder is not None
    ]
    return tuple(dict.fromkeys(Path(folder).absolute() for folder in folders))


def _python(cluster: ClusterConfig) -> str:
    slurm = cluster.slurm
    return slurm.python or ("python3" if slurm.container is not None else sys.executable)


@contextmanager
def _alone(nodes: Sequence[Node]) -> Iterator[None]:
    """One submission of a family at a time: the second sees what the first has queued."""
    with ExitStack() as stack:
        for path in sorted({folder_of(node).submission_lock for node in nodes}):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.open("a")), fcntl.LOCK_EX)
        yield


@contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """Those that ask this process to end, and that its terminal is gone, are noted: half a tree is not to stay."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (*signals.ASKING, signal.SIGHUP)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _all_or_none() -> Iterator[dict[RunFolder, str | None]]:
    """Take back what was begun, the jobs by their runs, when the rest fails."""
    begun: dict[RunFolder, str | None] = {}
    try:
        yield begun
    except BaseException:
        client.cancel(job for job in begun.values() if job is not None)
        for folder in begun:
            shutil.rmtree(folder.job, ignore_errors=True)
            for empty in (folder.logs, folder.path):
                with suppress(OSError):  # it holds something
                    os.rmdir(empty)
        raise
