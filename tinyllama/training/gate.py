"""What must stand on disk before a stage may be trained. Light: nothing of torch is loaded to say no."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.schema import ClusterConfig, RunConfig
from tinyllama.errors import ConfigError
from tinyllama.planning.plan import RunPlan
from tinyllama.world import given_ranks


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
        f"  {train_command([*_without_stage(overrides), f'stage={parent.stage}'])}{_other_parents(folder)}"
    )


def require_corpora(plan: RunPlan, overrides: Sequence[str]) -> None:
    """Every corpus that the stage reads must be prepared.

    Raises:
        ConfigError: one is not; names the command that prepares it.
    """
    for name, corpus in plan.corpora.items():
        if not corpus.prepared:
            scale = [
                text for text in overrides if text.lstrip("+").startswith(("scale=", "paths.", "tokenizer", "model"))
            ]
            raise ConfigError(
                f"corpus {name} of stage={plan.stage} is not prepared; prepare it first:\n"
                f"  {' '.join(['python -m tinyllama.prepare', f'corpus={name}', *scale])}"
            )


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


@contextmanager
def sole_trainer(folder: RunFolder) -> Iterator[None]:
    """Hold the run's directory while it is trained.

    Raises:
        ConfigError: another process does.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder.path} is being trained by another process; wait for it or end it") from error
        yield


def train_command(overrides: Sequence[str]) -> str:
    """What a person types to train what the overrides name."""
    return " ".join(["python -m tinyllama.train", *overrides])


def _without_stage(overrides: Sequence[str]) -> list[str]:
    return [text for text in overrides if not text.lstrip("+").startswith(("stage=", "stage."))]


def _other_parents(folder: RunFolder) -> str:
    """A word about runs of the parent's name that mean something else."""
    stage = folder.path.name.rpartition("-")[0]
    others = sorted(path.name for path in folder.path.parent.glob(f"{stage}-*") if path != folder.path)
    if not others:
        return ""
    return (
        f"\n{', '.join(others)} in the same family was trained with other settings (its identity.json tells them); "
        f"to go on from it give the same settings again, those of its stage as ++stages.{stage}.FIELD=VALUE"
    )
