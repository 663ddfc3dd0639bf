"""What must stand on disk before a stage may be trained. Light: nothing of torch is loaded to say no."""

import fcntl
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tinyllama.checkpoint.files import free_bytes
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.schema import ClusterConfig, RunConfig
from tinyllama.data.cache import cache_limit
from tinyllama.data.inventory import corpus_folders
from tinyllama.data.manifest import read_manifest
from tinyllama.data.shards import require_fingerprint
from tinyllama.errors import ConfigError
from tinyllama.planning.lints import lint, require_no_errors
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.storage import checkpoint_bytes, checkpoints_bytes
from tinyllama.planning.tree import Node
from tinyllama.training.drift import require_no_drift
from tinyllama.units import format_bytes
from tinyllama.world import World, given_ranks


def require_ready(nodes: Sequence[Node], queued: Collection[str] | None = None) -> None:
    """Before the first step of the first node: whatever can be wrong with any of those that were asked for.

    Warnings go to standard error once nothing is in the way.

    Args:
        queued: where the nodes are to be submitted to a cluster, the digests of runs that its queue has already;
            None where they are to run on this machine.

    Raises:
        ConfigError: a lint is an error, or data, an ancestor that nobody asked for, or machines are missing.
        DriftError: a run stands on disk under the same name with another meaning.
        DamageError: the record of a run of the family is damaged, or the index of a corpus.
    """
    asked = [node for node in nodes if node.overrides is not None]
    todo = [node for node in asked if _folder(node).status is not Status.done]
    found = lint(nodes) if todo else ()
    require_no_errors(found)
    for node in todo:
        require_corpora(node.plan, node.overrides or (), node.config.paths.remote)
        require_cache(node.config, node.plan)
        if queued is None:
            require_one_machine(node.config.cluster)
    if World.from_environment().is_main:
        require_sound_indices(todo)
    require_disk(todo)
    if todo:
        require_no_drift(nodes)
    comes_first = {node.plan.digest for node in todo} | set(queued or ())
    for node in todo:
        comes = node.plan.parent is not None and node.plan.parent.digest in comes_first
        if not comes and node.config.adopt is None:
            require_parent(node.config, node.plan, node.overrides or ())
    if World.from_environment().is_main:
        for warning in (*(each for each in found if each.level == "warning"), *disk_warnings(todo)):
            print(f"warning: {warning}", file=sys.stderr)


def require_parent(config: RunConfig, plan: RunPlan, overrides: Sequence[str]) -> None:
    """The stage that this one continues must be done.

    Raises:
        ConfigError: it is not; names the command that trains it.
    """
    parent = plan.parent
    if parent is None:
        return
    folder = RunFolder.of(config.paths.runs, parent)
    forked = plan.start_tokens != parent.end_tokens
    if folder.status is Status.done and not forked or plan.start_tokens in folder.checkpoint_tokens() and forked:
        return
    state = {Status.absent: "has not been trained", Status.partial: "is not finished"}.get(folder.status)
    if state is None:
        raise ConfigError(
            f"stage.fork_at_tokens={config.stage.fork_at_tokens}: {folder.path} has no checkpoint at "
            f"{plan.start_tokens} tokens; it has {folder.checkpoint_tokens()} (checkpoint.milestones declares them)"
        )
    raise ConfigError(
        f"stage.parent={parent.stage} of stage={plan.stage} {state} ({folder.path}); train it first:\n"
        f"  {train_command([*_without_stage(overrides), f'stage={parent.stage}'])}"
    )


def require_corpora(plan: RunPlan, overrides: Sequence[str], remote: str | None = None) -> None:
    """Every corpus that the stage and its ancestors read must be prepared: their content is part of what they mean.

    Raises:
        ConfigError: one is not; names the command that prepares it.
    """
    for name, corpus in [entry for stage in plan.path for entry in stage.corpora.items()]:
        if not corpus.prepared:
            scale = [
                text
                for text in overrides
                if text.lstrip("+").startswith(("scale=", "paths.", "tokenizer", "model", "packing"))
            ]
            command = " ".join(["python -m tinyllama.prepare", f"corpus={name}", *scale])
            raise ConfigError(
                f"corpus {name} of stage={plan.stage} is not prepared; prepare it first:\n  {command}"
                if remote is None
                else f"corpus {name} of stage={plan.stage} is not at paths.remote={remote}; where it is prepared, "
                f"bring it there:\n  {command} action=upload"
            )


def require_sound_indices(nodes: Sequence[Node]) -> None:
    """Of corpora on this machine, the shards that are listed must be those whose fingerprint went into the plan.

    Raises:
        DamageError: they are not.
    """
    local = (node for node in nodes if node.config.paths.remote is None)
    for folder in dict.fromkeys(path for node in local for path in _folders(node)):
        require_fingerprint(folder)


def require_cache(config: RunConfig, plan: RunPlan) -> None:
    """A node must be allowed to keep as much of a remote's shards as its ranks read at a time.

    Raises:
        ConfigError: cluster.cache_gib is less.
    """
    cache_limit(config, filter(None, map(read_manifest, corpus_folders(config, plan.corpora).values())))


def require_one_machine(cluster: ClusterConfig) -> None:
    """Without torchrun or srun only this machine can be used.

    Raises:
        ConfigError: the cluster has more nodes.
    """
    if cluster.nodes > 1 and given_ranks() is None:
        raise ConfigError(
            f"cluster.nodes={cluster.nodes} (cluster={cluster.name}) cannot be started from one machine; run the same "
            f"command under torchrun or srun on every node, or choose cluster=local"
        )


def require_disk(nodes: Sequence[Node]) -> None:
    """The disk must hold two checkpoints of each run, or one more where a run has some: one is always whole.

    Raises:
        ConfigError: it does not.
    """
    for node in nodes:
        runs, size = node.config.paths.runs, checkpoint_bytes(node.config)
        needed = max(1, 2 - len(_folder(node).checkpoint_tokens()))
        if (free := free_bytes(Path(runs))) < needed * size:
            raise ConfigError(
                f"paths.runs={runs} has {format_bytes(free)} free, and stage={node.plan.stage} needs "
                f"{format_bytes(needed * size)} there for {needed} checkpoint{'s' * (needed > 1)}, so that one is "
                f"always whole; free {format_bytes(needed * size - free)} or choose a larger disk"
            )


def disk_warnings(nodes: Sequence[Node]) -> Iterator[str]:
    """Where all that the runs will keep does not fit beside what is there."""
    for runs in dict.fromkeys(node.config.paths.runs for node in nodes):
        here = [node for node in nodes if node.config.paths.runs == runs]
        kept = sum(checkpoints_bytes(node.plan, node.config) for node in here)
        present = sum(len(_folder(node).checkpoint_tokens()) * checkpoint_bytes(node.config) for node in here)
        needed, free = kept - present + max(checkpoint_bytes(node.config) for node in here), free_bytes(Path(runs))
        if needed > free:
            yield (
                f"paths.runs={runs} has {format_bytes(free)} free, and the checkpoints that {len(here)} "
                f"run{'s' * (len(here) > 1)} will keep take {format_bytes(needed)} more; lower checkpoint.keep, "
                f"declare fewer checkpoint.milestones, or free {format_bytes(needed - free)} in time"
            )


def _folders(node: Node) -> Iterable[Path]:
    """Of the corpora that it reads."""
    return corpus_folders(node.config, node.plan.corpora).values()


def _folder(node: Node) -> RunFolder:
    return RunFolder.of(node.config.paths.runs, node.plan)


@contextmanager
def sole_trainer(folder: RunFolder) -> Iterator[None]:
    """Hold the run's directory while it is trained.

    Raises:
        ConfigError: another process does.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("w") as lock:
        if not _lock(lock):
            raise ConfigError(f"{folder.path} is being trained by another process; wait for it or end it")
        yield


def _lock(file: IO[str]) -> bool:
    """Whether it is ours now. Who only looks whether a run is being trained holds it for an instant: tried again."""
    for pause_seconds in (0.01, 0.1, 0.5, None):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if pause_seconds:
            time.sleep(pause_seconds)
    return False


def train_command(overrides: Sequence[str]) -> str:
    """What a person types to train what the overrides name."""
    return " ".join(["python -m tinyllama.train", *overrides])


def _without_stage(overrides: Sequence[str]) -> list[str]:
    return [text for text in overrides if not text.lstrip("+").startswith(("stage=", "stage."))]
