"""The drill: a run that nothing disturbs, and two that are killed and go on, on the same ranks and on others."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.schema import ClusterConfig, Precision
from tinyllama.drilling.comparison import Comparison, first_measured_difference
from tinyllama.drilling.fork_server import ForkServer
from tinyllama.drilling.life import IMPORTS, Life, Pace, live, log_end
from tinyllama.drilling.points import Kill, Placement, deal_kills, other_placements, own_placement
from tinyllama.drilling.rehearsal import Rehearsal
from tinyllama.errors import ConfigError, DamageError, TinyllamaError
from tinyllama.proof.examination import Check
from tinyllama.units import format_seconds
from tinyllama.world import visible_gpus

UNBROKEN, SAME, OTHER = "unbroken", "same ranks", "other ranks"

_ROUNDING = {Precision.fp32: 1e-4, Precision.bf16: 2e-2}
"""Relative; what other ranks and micro-batches may change in losses and norms. Some 1e-7 is usual in fp32."""
_PATIENCE = 20
"""A life may take so many times as long as the unbroken one, and the time-out of a collective, before it hangs."""


@dataclass
class Report:
    """What became of a drill."""

    lives: list[tuple[str, Life]] = field(default_factory=list)
    """Each with the name of its run."""
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """Of each broken run with the unbroken one."""
    repeatable: bool = True
    """Whether this machine computes the same bits twice when nothing disturbs it."""

    @property
    def checks(self) -> list[Check]:
        return [
            Check(f"{run}: {check.name}", check.ok, check.detail)
            for run, comparison in self.comparisons.items()
            for check in comparison.checks
        ]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def kills(self) -> int:
        return sum(life.signal is not None for _, life in self.lives)

    def equal(self, name: str) -> bool:
        """Whether a check was made of every broken run, and all was well."""
        return all(comparison.found_equal(name) for comparison in self.comparisons.values())

    @property
    def bitwise_equal(self) -> bool:
        """Whether the state at the end is the unbroken run's, on the same ranks."""
        return self.comparisons[SAME].found_equal("weights")

    @property
    def max_loss_difference(self) -> float | None:
        found = [each.max_loss_difference for each in self.comparisons.values()]
        return None if None in found else max((value for value in found if value is not None), default=None)


@dataclass
class Drill:
    """Everything happens in the folder `scratch`; `tell` hears a line per life."""

    rehearsal: Rehearsal
    scratch: Path
    tell: Callable[[str], None]
    report: Report = field(default_factory=Report)
    _server: ForkServer = field(init=False)

    def run(self) -> Report:
        """
        Raises:
            TinyllamaError: the stage cannot be trained even when nothing disturbs it.
        """
        config, plan = self.rehearsal.config, self.rehearsal.plan
        dice = Random(config.drill.seed)
        own, others = own_placement(config), other_placements(config, plan, dice)
        elsewhere = config.drill.kills // 2 if others else 0
        same, other = deal_kills([config.drill.kills - elsewhere, elsewhere], plan.steps, dice)
        self.tell(f"{plan.steps} steps of {plan.stage}, from {self.rehearsal.begins}")
        with ForkServer(IMPORTS) as self._server:
            self._train_ancestors(own)
            pace = self._train_unbroken(own)
            self._break(SAME, [own], same, pace)
            if other:
                self._break(OTHER, others, other, pace)
        return self.report

    def _train_ancestors(self, placement: Placement) -> None:
        if self.rehearsal.parents is not None:
            return
        for ancestor in self.rehearsal.plan.path[:-1]:
            log = self.scratch / f"{ancestor.stage}.log"
            settings = [*self.rehearsal.overrides_of(ancestor.stage), _in_folder(self._parents)]
            life = live(self._server, settings, RunFolder.of(self._parents, ancestor), placement, log)
            self.tell(f"{ancestor.stage}, shortened ({format_seconds(life.pace.whole)})")
            _require_trained(life, ancestor.stage)

    def _train_unbroken(self, placement: Placement) -> Pace:
        life = self._live(UNBROKEN, placement)
        _require_trained(life, self.rehearsal.plan.stage)
        return life.pace

    def _break(self, name: str, placements: Sequence[Placement], kills: Sequence[Kill], pace: Pace) -> None:
        """A run that meets all the kills and then comes to its end, and what it is beside the unbroken one."""
        config, faults, first_resume = self.rehearsal.config, [], None
        for number, kill in enumerate([*kills, None]):
            life = self._live(name, placements[number % len(placements)], kill, pace)
            first_resume = first_resume or life.resumed_from_step
            if life.fault is not None:
                faults.append(f"life {number + 1} {life.fault}")
            if faults or life.code == 0:
                break
        if name == SAME:
            self.report.repeatable = self._repeats(first_resume)
        exact = name == SAME and self.report.repeatable
        tolerance = 0.0 if exact else _rounding(config.cluster)
        comparison = Comparison(self._folder(UNBROKEN), self._folder(name), self.rehearsal.plan, tolerance)
        self.report.comparisons[name] = comparison
        if comparison.examination.check("lives", lambda: _healthy(number + 1, faults)):
            comparison.look()
        if self.report.ok and not config.drill.keep:
            shutil.rmtree(self._runs(name))

    def _repeats(self, first_resume: int | None) -> bool:
        """Whether what went before the first resume is what the unbroken run did, down to the last bit."""
        try:
            step = first_measured_difference(self._folder(UNBROKEN), self._folder(SAME))
        except DamageError:  # another matter, which the comparison will tell
            return True
        return step is None or first_resume is None or step > first_resume

    def _live(self, name: str, placement: Placement, kill: Kill | None = None, pace: Pace | None = None) -> Life:
        runs, folder = self._runs(name), self._folder(name)
        if not runs.exists():
            self._link_ancestors(folder)
        timeout_seconds = 60 * self.rehearsal.config.cluster.timeout_minutes
        life = live(
            self._server,
            [*self.rehearsal.overrides, _in_folder(runs)],
            folder,
            placement,
            self.scratch / f"life {len(self.report.lives) + 1}.log",
            kill=kill,
            pace=pace,
            interval_steps=self.rehearsal.interval_steps,
            last_step=self.rehearsal.plan.steps,
            limit_seconds=timeout_seconds + _PATIENCE * pace.whole if pace else math.inf,
        )
        self.report.lives.append((name, life))
        self.tell(_told(len(self.report.lives), name, life))
        return life

    def _link_ancestors(self, folder: RunFolder) -> None:
        """Beside the run, where it looks for them; nobody writes into them."""
        folder.path.parent.mkdir(parents=True)
        for ancestor in self.rehearsal.plan.path[:-1]:
            source = RunFolder.of(self.rehearsal.parents or self._parents, ancestor).path
            folder.path.with_name(source.name).symlink_to(source, target_is_directory=True)

    @property
    def _parents(self) -> Path:
        """Where ancestors are trained that are not done."""
        return self.scratch / "parents"

    def _runs(self, name: str) -> Path:
        return self.scratch / name.replace(" ", "_")

    def _folder(self, name: str) -> RunFolder:
        return RunFolder.of(self._runs(name), self.rehearsal.plan)


def _in_folder(runs: Path) -> str:
    """The override that has `train` work there."""
    quoted = str(runs).replace("'", r"\'")
    return f"paths.runs='{quoted}'"


def _require_trained(life: Life, stage: str) -> None:
    """What a person must mend before anything can be drilled is said as `train` said it."""
    if life.code:
        kinds = {error.exit_code: error for error in (ConfigError, DamageError)}
        error = kinds.get(life.code, TinyllamaError)
        raise error(f"stage={stage} does not come to its end even undisturbed:\n{log_end(life.log)}")


def _healthy(lives: int, faults: Sequence[str]) -> str:
    if faults:
        raise DamageError(faults[0])
    return f"{lives} lives, each ended as it should"


def _rounding(cluster: ClusterConfig) -> float:
    precision = cluster.precision
    if precision is Precision.auto:
        precision = Precision.bf16 if visible_gpus() else Precision.fp32
    return _ROUNDING[precision]


def _told(number: int, name: str, life: Life) -> str:
    ranks = f"{life.placement.world} x {life.placement.micro_batch} samples"
    start = f"from step {life.resumed_from_step}" if life.resumed_from_step is not None else "before its first step"
    end = f"{life.signal.name} during {life.during} at step {life.at_step or 0}" if life.signal else "to the end"
    return f"life {number} ({name}, {ranks}): {start}, {end} ({format_seconds(life.pace.whole)})"
