"""What is drilled: the stage that a person declares, cut short, on its real parent where that one is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.app import compose_path, setting_of
from tinyllama.config.checks import check_path
from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import take_inventory
from tinyllama.errors import ConfigError
from tinyllama.planning.plan import RunPlan, make_plan
from tinyllama.training.gate import require_corpora
from tinyllama.world import given_ranks

_CHECKPOINTS = 5
"""So many fall into the drill, about."""
_ANCESTOR_STEPS = 2
_VALIDATION_SAMPLES = 16
_NOT_FOR_TRAINING = {"adopt", "branch", "contains", "format", "plots", "run"}


@dataclass(frozen=True)
class Rehearsal:
    """A short stage, and what stands before it."""

    overrides: tuple[str, ...]
    """With which `train` trains it, without a place for the runs and without ranks."""
    config: RunConfig
    plan: RunPlan
    parents: Path | None
    """Runs folder in which its ancestors are done; None: they are to be trained first, as short as can be."""

    @property
    def interval_steps(self) -> int:
        """Steps from one checkpoint to the next."""
        return max(1, self.plan.steps // _CHECKPOINTS)

    @property
    def begins(self) -> str:
        """From what, for people."""
        if self.plan.parent is None:
            return f"the weights in {self.plan.origin.folder}" if self.plan.origin else "random weights"
        return f"{self.plan.parent.name} of {self.parents}" if self.parents else "a shortened parent"

    def overrides_of(self, ancestor: str) -> list[str]:
        """With which `train` trains an ancestor."""
        return [*(text for text in self.overrides if not _speaks_of_stage(text)), f"stage={ancestor}"]


def rehearse(overrides: Sequence[str]) -> Rehearsal:
    """Cut short what the overrides declare. Works inside a command only.

    Raises:
        ConfigError: the settings are wrong, or cannot be drilled from here.
    """
    path = compose_path(overrides)
    check_path(path)
    config, plan = path[-1], make_plan(path, take_inventory(path))
    _check(config)
    require_corpora(plan, overrides)
    parents = Path(config.paths.runs).absolute()
    ready = _is_done(plan, parents)
    settings = _shortened(config, plan)
    if not ready:
        settings |= _shortened_ancestors(path)
    said = [text for text in overrides if not _is_replaced(setting_of(text), settings)]
    if "tracking" not in map(setting_of, said):
        said.append("tracking=none")
    short = [*said, *(f"++{name}={value}" for name, value in settings.items())]
    short_path = compose_path(short)
    short_plan = make_plan(short_path, take_inventory(short_path))
    return Rehearsal(tuple(short), short_path[-1], short_plan, parents if ready else None)


def _check(config: RunConfig) -> None:
    drill = config.drill
    for setting, value, least in (("steps", drill.steps, 2), ("kills", drill.kills, 1)):
        if value < least:
            raise ConfigError(f"drill.{setting}={value} must be {least} or more")
    if given_ranks() is not None:
        raise ConfigError("drill starts and kills its ranks itself; run it without torchrun or srun, on one machine")
    if config.cluster.nodes > 1:
        raise ConfigError(
            f"cluster.nodes={config.cluster.nodes} (cluster={config.cluster.name}) cannot be started and killed from "
            f"one machine; add cluster.nodes=1 to drill on this one"
        )


def _is_done(plan: RunPlan, runs: Path) -> bool:
    """Whether all ancestors stand there, and the state at which the stage starts."""
    if plan.parent is None:
        return True
    folders = [RunFolder.of(runs, ancestor) for ancestor in plan.path[:-1]]
    forked = plan.start_tokens != plan.parent.end_tokens
    whole = plan.start_tokens in folders[-1].checkpoint_tokens() if forked else folders[-1].status is Status.done
    return whole and all(folder.status is not Status.absent for folder in folders)


def _shortened(config: RunConfig, plan: RunPlan) -> dict[str, object]:
    """Settings of the stage at hand. Checkpoints and validation come several times; everything is written down."""
    steps = min(config.drill.steps, plan.steps)
    tokens = steps * plan.batch_tokens
    every = max(1, steps // _CHECKPOINTS) * plan.batch_tokens
    return {
        "stage.tokens": tokens,
        "stage.ramp_tokens": min(plan.ramp_tokens, tokens),
        "checkpoint.every_tokens": every,
        "checkpoint.milestones": "[]",
        "validation.every_tokens": 2 * every,
        "validation.samples": min(config.validation.samples, _VALIDATION_SAMPLES),
        "trace": "true",
        # Who asks for tracking gets a store beside the drilled runs; the real one learns nothing of drills.
        "tracking.uri": "null",
    }


def _shortened_ancestors(path: Sequence[RunConfig]) -> dict[str, object]:
    """So that the stage starts where they end, soon."""
    settings: dict[str, object] = {"stage.fork_at_tokens": "null"}
    for stage in (config.stage for config in path[:-1]):
        tokens = _ANCESTOR_STEPS * stage.batch_tokens
        settings[f"stages.{stage.name}.tokens"] = tokens
        settings[f"stages.{stage.name}.ramp_tokens"] = min(stage.ramp_tokens, tokens)
        settings[f"stages.{stage.name}.fork_at_tokens"] = "null"
    return settings


def _is_replaced(setting: str, settings: dict[str, object]) -> bool:
    return setting in settings or setting in _NOT_FOR_TRAINING


def _speaks_of_stage(override: str) -> bool:
    setting = setting_of(override)
    return setting.startswith("stage.") or setting in ("stage", "parent")
