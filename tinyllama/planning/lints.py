"""What can be wrong with a family of runs although each setting by itself is right: one table, a function a lint.

docs/lints.md tells what each is there for. Pure: what is wrong is returned, and whoever trains or plans acts on it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, gcd, isclose
from typing import Literal

from tinyllama.config.checks import length_setting
from tinyllama.config.schema import CorpusConfig, MixChoice
from tinyllama.errors import ConfigError, unknown
from tinyllama.planning.fitting import certain_gib, what_fits
from tinyllama.planning.globs import can_meet
from tinyllama.planning.identity import differences
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.schedule import Schedule
from tinyllama.planning.tree import Node
from tinyllama.units import format_tokens

Level = Literal["error", "warning", "note"]
"""An error keeps the family from being trained; a warning and a note are shown."""


@dataclass(frozen=True)
class Lint:
    """A fault of a family."""

    level: Level
    name: str
    """What LINTS and `lints.ignore` call it."""
    setting: str
    message: str
    """Setting, value, rule and remedy."""

    def __str__(self) -> str:
        return f"{self.message} [{self.name}]"


class Family:
    """The nodes of a family, parents first, with what lints ask of it."""

    def __init__(self, nodes: Sequence[Node]):
        self.nodes = tuple(nodes)
        self._nodes = {node.plan.digest: node for node in nodes}
        self.borders = [(self._nodes[node.plan.parent.digest], node) for node in nodes if node.plan.parent is not None]
        """Parents with each of their children."""
        parents = {parent.plan.digest for parent, _ in self.borders}
        self.leaves = [node for node in nodes if node.plan.digest not in parents]
        goes_on = {parent.plan.digest for parent, child in self.borders if parent.plan.schedule == child.plan.schedule}
        self.ends_of_schedules = [node for node in nodes if node.plan.digest not in goes_on]

    def path(self, node: Node) -> list[Node]:
        """The node and its ancestors, the root first."""
        return [self._nodes[plan.digest] for plan in node.plan.path]

    def life(self, node: Node) -> int:
        """Tokens from the root to the end of the node, as declared."""
        life = 0
        for stage in (each.config.stage for each in self.path(node)):
            life = (life if stage.fork_at_tokens is None else int(stage.fork_at_tokens)) + int(stage.tokens)
        return life

    def told_life(self, node: Node) -> str:
        """The same in words: "2T tokens (basic 1.5T -> continual 350B -> cooldown 150B)"."""
        stages = [each.config.stage for each in self.path(node)]
        told = " -> ".join(f"{stage.name} {format_tokens(stage.tokens)}" for stage in stages)
        return f"{self.life(node)} tokens ({told})"


Check = Callable[[Family], Iterator[str]]
"""Yields messages, which begin with SETTING=VALUE. Equal words are one fault: a message names a run only if it must."""


def lint(nodes: Sequence[Node]) -> tuple[Lint, ...]:
    """The faults of a family, each once, in the order of LINTS.

    Raises:
        ConfigError: `lints.ignore` names no lint.
    """
    ignored = {name: None for node in nodes for name in node.config.lints.ignore}
    for name in ignored:
        if name not in LINTS:
            raise unknown("lints.ignore", name, LINTS)
    family = Family(nodes)
    found = [
        Lint(level, name, message.partition("=")[0], message)
        for name, (level, check) in LINTS.items()
        if name not in ignored
        for message in check(family)
    ]
    return tuple(dict.fromkeys(found))


def require_no_errors(lints: Sequence[Lint]) -> None:
    """Stop where one of the lints is an error.

    Raises:
        ConfigError: all the errors, in one message.
    """
    errors = [str(each) for each in lints if each.level == "error"]
    if errors:
        raise ConfigError(errors[0] if len(errors) == 1 else "\n  ".join([f"{len(errors)} faults", *errors]))


# ---------------------------------------------------------------- learning rate


def _floor_above_peak(family: Family) -> Iterator[str]:
    for schedule in (node.plan.schedule for node in family.nodes):
        if schedule.floor >= schedule.peak:
            yield (
                f"schedule.min_learning_rate={schedule.floor:g} must lie below the peak "
                f"optimizer.learning_rate={schedule.peak:g}, or nothing decays; "
                f"a tenth of the peak is usual: {schedule.peak / 10:g}"
            )


def _horizon_short(family: Family) -> Iterator[str]:
    for node in family.ends_of_schedules:
        schedule, life = node.plan.schedule, family.life(node)
        if _reaches_its_floor(schedule) and schedule.horizon_tokens < life:
            yield (
                f"schedule.horizon_tokens={schedule.horizon_tokens} is shorter than the path to this stage, "
                f"{family.told_life(node)}, so its end would train at the floor; "
                f"set schedule.horizon_tokens={life} or more"
            )


def _horizon_long(family: Family) -> Iterator[str]:
    for leaf in _ends(family):
        schedule, life = leaf.plan.schedule, family.life(leaf)
        if _reaches_its_floor(schedule) and schedule.horizon_tokens >= life + leaf.plan.batch_tokens:
            yield (
                f"schedule.horizon_tokens={schedule.horizon_tokens} lies beyond the end of the path, "
                f"{family.told_life(leaf)}, which ends with a learning rate of {schedule(life):.3g} and never reaches "
                f"the floor schedule.min_learning_rate={schedule.floor:g}; set schedule.horizon_tokens={life}"
            )


def _ends_above_floor(family: Family) -> Iterator[str]:
    for leaf in _ends(family):
        schedule, config = leaf.plan.schedule, leaf.config
        if not _reaches_its_floor(schedule):
            yield (
                f"schedule.name={config.schedule.name} ends stage {config.stage.name} with a learning rate of "
                f"{schedule(family.life(leaf)):.3g}, above its floor schedule.min_learning_rate={schedule.floor:g}; "
                f"end the path with a schedule that falls, such as schedule.name=cosine"
            )


def _warmup_repeated(family: Family) -> Iterator[str]:
    for parent, child in family.borders:
        if _warms_up_again(parent.plan, child.plan):
            before, after = parent.plan.schedule.warmup_tokens, child.plan.schedule.warmup_tokens
            yield (
                f"schedule.warmup_tokens={after} counts from the root, so stage {child.plan.stage} would start inside "
                f"its warm-up, at {child.plan.start_tokens} tokens, though its parent {parent.plan.stage} has left its "
                f"own at {before}; set schedule.warmup_tokens={before} for both"
            )


def _learning_rate_jump(family: Family) -> Iterator[str]:
    for parent, child in family.borders:
        tokens = child.plan.start_tokens
        before, after = parent.plan.schedule(tokens), child.plan.schedule(tokens)
        if isclose(before, after, rel_tol=1e-6) or _warms_up_again(parent.plan, child.plan):
            continue
        changed = [
            (f"{group}.{each.field}", each.old, each.new)
            for group in ("schedule", "optimizer")
            for each in differences(parent.plan.meaning[group], child.plan.meaning[group])
            if group == "schedule" or each.field == "learning_rate"
        ]
        told = ", ".join(f"{setting}={new} ({old} in {parent.plan.stage})" for setting, old, new in changed)
        yield (
            f"{told}: stage {child.plan.stage} would start with a learning rate of {after:.3g}, but its parent "
            f"{parent.plan.stage} has {before:.3g} where they meet, at {tokens} tokens; give both the same, or values "
            f"with which the child's schedule passes through {before:.3g} there"
        )


def _reaches_its_floor(schedule: Schedule) -> bool:
    return schedule(schedule.horizon_tokens) <= schedule.floor


def _ends(family: Family) -> list[Node]:
    """Leaves at which training is meant to end: no stage of conf/ goes on from them."""
    return [leaf for leaf in family.leaves if not leaf.continued]


def _warms_up_again(parent: RunPlan, child: RunPlan) -> bool:
    return parent.schedule.warmup_tokens <= child.start_tokens < child.schedule.warmup_tokens


# ---------------------------------------------------------------- mixture and corpora


def _mixture_jump(family: Family) -> Iterator[str]:
    for parent, child in family.borders:
        position = (child.plan.start_tokens - parent.plan.start_tokens) // parent.plan.seq_len
        before, after = parent.plan.weights_at(position), child.plan.weights_at(0)
        jumps = {
            name: f"{name} from {before.get(name, 0):.3g} to {after.get(name, 0):.3g}"
            for name in {**before, **after}
            if not isclose(before.get(name, 0), after.get(name, 0), abs_tol=1e-9)
        }
        if jumps:
            stage = child.config.stage
            yield (
                f"stage.ramp_tokens={stage.ramp_tokens}: the mixture jumps where stage {stage.name} starts "
                f"({', '.join(jumps.values())}); let it go over gradually, such as within a fiftieth of the stage: "
                f"stage.ramp_tokens={stage.tokens // 50}"
            )


def _max_epochs(family: Family) -> Iterator[str]:
    for node in family.nodes:
        ends = node.plan.order.draws_before(node.plan.samples)
        for name in node.plan.corpora:
            limit, epoch = node.config.corpora[name].max_epochs, node.plan.order.epoch_samples(name)
            before, after = node.plan.start_draws.get(name, 0) / epoch, ends[name] / epoch
            if limit is not None and before <= limit < after:  # the first stage of the path that passes it
                yield (
                    f"corpora.{name}.max_epochs={limit:g}: {name} is read {after:.3g} times from the root to the end "
                    f"of stage {_told(node)}; lower its weight, shorten a stage, add data, or allow "
                    f"corpora.{name}.max_epochs={ceil(after)}"
                )


def _starved_corpus(family: Family) -> Iterator[str]:
    for node in family.nodes:
        mix = "root_mix" if node.config.stage.mix is MixChoice.root else "data_mix"
        weights = getattr(node.config, mix).weights
        for name, share in node.plan.end_weights.items():
            if share * node.plan.batch_samples < 1:
                yield (
                    f"{mix}.weights.{name}={weights[name]:g} is {share * node.plan.batch_samples:.2g} samples of a "
                    f"batch of {node.plan.batch_samples}, so most steps would see nothing of it; raise the weight to a "
                    f"share of {1 / node.plan.batch_samples:.2g} or more, or enlarge "
                    f"stage.batch_tokens={node.plan.batch_tokens}"
                )


def _short_for_ramp(family: Family) -> Iterator[str]:
    for node in family.nodes:
        ramp_samples = node.plan.ramp_tokens / node.plan.seq_len
        for name, corpus in node.plan.corpora.items():
            shares = node.plan.start_weights.get(name, 0.0), node.plan.end_weights.get(name, 0.0)
            epochs = ramp_samples * sum(shares) / 2 / node.plan.view.samples(corpus.shard_samples)
            if epochs > 1:
                yield (
                    f"stage.ramp_tokens={node.plan.ramp_tokens}: the ramp of stage {node.plan.stage} alone reads "
                    f"{name} {epochs:.3g} times, so it repeats before its weight is reached; shorten the ramp to "
                    f"{int(node.plan.ramp_tokens / epochs)} or add data to {name}"
                )


def _reordered_epoch(family: Family) -> Iterator[str]:
    for parent, child in family.borders:
        old, new = parent.plan.view, child.plan.view
        if old == new or old.joined == new.joined == 1:
            continue
        orders = {name: child.plan.order.epoch_samples(name) for name in child.plan.corpora}
        running = {name: child.plan.start_draws.get(name, 0) / epoch % 1 for name, epoch in orders.items()}
        told = ", ".join(f"{name} ({read:.0%} of it is read)" for name, read in running.items() if read)
        if told:
            yield (
                f"{length_setting(child.config)}={child.plan.seq_len} has another order than the {parent.plan.seq_len} "
                f"of the parent of stage {child.plan.stage}, as prepared samples of "
                f"{child.config.packing.seq_len} tokens are joined, so within the running epoch of {told} text that "
                f"was read may come again, and as much is missed; only lengths that divide packing.seq_len keep the "
                f"order"
            )


def _left_out(family: Family) -> Iterator[str]:
    for node in family.nodes:
        for name, corpus in node.plan.corpora.items():
            left = node.plan.view.left_out(corpus.shard_samples)
            if left > corpus.samples / 100:
                yield (
                    f"{length_setting(node.config)}={node.plan.seq_len} leaves out {left} of the {corpus.samples} "
                    f"prepared samples of {name}: {node.plan.view.joined} of one shard are joined at a time; a shorter "
                    f"length, or preparing with packing.seq_len={node.plan.seq_len}, reads them too"
                )


def _pinned_version(family: Family) -> Iterator[str]:
    for node in family.nodes:
        for name, corpus in node.plan.corpora.items():
            version = node.config.corpora[name].version
            if version is not None and corpus.prepared:
                yield (
                    f"corpora.{name}.version={version}: {name} is read as it was prepared then (fingerprint "
                    f"{corpus.fingerprint[:12]}), whatever has been prepared since; null reads the latest"
                )


def _shared_files(family: Family) -> Iterator[str]:
    for leaf in family.leaves:
        used = dict.fromkeys(name for plan in leaf.plan.path for name in plan.corpora)
        for one, other in combinations([leaf.config.corpora[name] for name in used], 2):
            common = _common_globs(one, other)
            if common and (one.keep, one.drop, one.text_field) == (other.keep, other.drop, other.text_field):
                yield (
                    f"corpora.{other.name}.files={common[1]} and corpora.{one.name}.files={common[0]} can match the "
                    f"same file and keep the same rows of it, so one text would count as two corpora; narrow a glob, "
                    f"or tell them apart by keep or drop"
                )


def _common_globs(one: CorpusConfig, other: CorpusConfig) -> tuple[str, str] | None:
    """The first globs of two corpora that can match the same file."""
    return next(((mine, theirs) for mine in one.files for theirs in other.files if can_meet(mine, theirs)), None)


def _told(node: Node) -> str:
    return f"{node.plan.stage} of {', '.join(node.variants)}"


# ---------------------------------------------------------------- size


def _rounded_tokens(family: Family) -> Iterator[str]:
    for node in family.nodes:
        declared, plan = node.config.stage.tokens, node.plan
        if declared != plan.tokens:
            yield (
                f"stage.tokens={declared} of stage {plan.stage} is not a whole number of batches of "
                f"{plan.batch_tokens} tokens; {plan.steps} steps are trained, {plan.tokens} tokens"
            )


def _memory(family: Family) -> Iterator[str]:
    batch = gcd(*(node.plan.batch_samples for node in family.nodes))
    for config in (node.config for node in family.nodes):
        cluster, room = config.cluster, config.cluster.gpu_memory_gib
        if room is not None and (need := certain_gib(config)) > room:
            which = "auto, whatever it is," if cluster.micro_batch_is_auto else cluster.micro_batch
            yield (
                f"cluster.micro_batch={which} needs {need:.3g} GiB per GPU, above "
                f"cluster.gpu_memory_gib={room:g} of {cluster.gpu or cluster.name}; {what_fits(config, room, batch)}"
            )


LINTS: dict[str, tuple[Level, Check]] = {
    "floor_above_peak": ("error", _floor_above_peak),
    "horizon_short": ("error", _horizon_short),
    "warmup_repeated": ("error", _warmup_repeated),
    "learning_rate_jump": ("error", _learning_rate_jump),
    "max_epochs": ("error", _max_epochs),
    "shared_files": ("error", _shared_files),
    "memory": ("error", _memory),
    "horizon_long": ("warning", _horizon_long),
    "ends_above_floor": ("warning", _ends_above_floor),
    "mixture_jump": ("warning", _mixture_jump),
    "starved_corpus": ("warning", _starved_corpus),
    "short_for_ramp": ("warning", _short_for_ramp),
    "reordered_epoch": ("warning", _reordered_epoch),
    "left_out": ("note", _left_out),
    "pinned_version": ("note", _pinned_version),
    "rounded_tokens": ("note", _rounded_tokens),
}
"""Level and check of every lint; errors first."""
