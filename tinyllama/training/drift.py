"""Drift: what is declared today is not what stands on disk under the same name.

A changed value gives another digest, and the run of another digest starts from nothing. That is what a person wants who
branches, and the costliest of accidents for everyone else; so it must be said.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.checkpoint.standing import StandingRun, standing_runs
from tinyllama.config.schema import MixChoice, RunConfig
from tinyllama.data.inventory import corpus_folders
from tinyllama.data.manifest import MANIFEST
from tinyllama.data.versions import DIGITS, corpus_versions
from tinyllama.errors import DriftError
from tinyllama.planning.identity import Difference, differences
from tinyllama.planning.tree import Node
from tinyllama.units import format_tokens


@dataclass(frozen=True)
class Drift:
    """A declared run that is new, and the one that stands under its label."""

    node: Node
    standing: StandingRun
    differences: tuple[Difference, ...]
    lost: tuple[StandingRun, ...]
    """The standing run and those that continue it: what the declared one would do without."""


def require_no_drift(nodes: Sequence[Node]) -> None:
    """No new node of the tree may stand on disk under another digest, unless the person branches or adopts a state.

    Raises:
        DriftError: one does; tells field by field what differs, and what it would cost.
        DamageError: the record of a run of the family is damaged.
    """
    for drift in drifts(nodes):
        adopts = drift.node.config.adopt is not None and drift.node.overrides is not None
        if not (drift.node.config.branch or adopts):
            raise DriftError(describe(drift))


def drifts(nodes: Sequence[Node]) -> Iterator[Drift]:
    """The drifts of a tree, ancestors first: those of descendants mostly follow from them."""
    for node, others in zip(nodes, beside(nodes), strict=True):
        if others and RunFolder.of(node.config.paths.runs, node.plan).status is Status.absent:
            found = {run.digest: tuple(differences(run.meaning, node.plan.meaning)) for run in others}
            nearest = min(others, key=lambda run: len(found[run.digest]))
            standing = standing_runs(node.config.paths.runs, node.config.family)
            yield Drift(node, nearest, found[nearest.digest], _with_descendants(nearest, standing))


def beside(nodes: Sequence[Node]) -> list[tuple[StandingRun, ...]]:
    """For each node, the runs on disk under the same label (family, variant, stage) that the tree does not declare.

    A stage that reads the family's common mixture from the root on is the same for all variants. Runs that the same
    tree declares stand beside each other on purpose.
    """
    configs = {node.plan.digest: node.config for node in nodes}
    common = {node.plan.digest: all(configs[plan.digest].stage.mix is MixChoice.root for plan in node.plan.path)
              for node in nodes}  # fmt: skip
    families = {(node.config.paths.runs, node.config.family) for node in nodes}
    standing = {family: standing_runs(*family) for family in families}
    return [
        tuple(
            run
            for run in standing[node.config.paths.runs, node.config.family]
            if run.stage == node.plan.stage
            and run.digest not in configs
            and (common[node.plan.digest] or set(run.variants) & set(node.variants))
        )
        for node in nodes
    ]


def _with_descendants(run: StandingRun, standing: Sequence[StandingRun]) -> tuple[StandingRun, ...]:
    children = [other for other in standing if other.meaning.get("parent") == run.digest]
    return (run, *(found for child in children for found in _with_descendants(child, standing)))


def describe(drift: Drift) -> str:
    """What differs, what is at stake, and the two ways on."""
    run, node = drift.standing, drift.node
    rows = [("", "stands", "declared"), *(_row(difference, drift) for difference in drift.differences)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = "\n".join("  " + "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
                      for row in rows)  # fmt: skip
    tokens = format_tokens(sum(run.tokens for run in drift.lost))
    descendants = f" and {len(drift.lost) - 1} that continue it" if len(drift.lost) > 1 else ""
    return (
        f"stage={node.plan.stage} of variant={node.config.variant} is declared with another meaning than the run that "
        f"stands, {run.folder.path}:\n{table}\n"
        f"{node.plan.name} would start from nothing, without the {tokens} tokens of {run.name}{descendants}.\n"
        f"{_way_back(drift)} to go on with what stands, or add branch=true to train the new meaning as a run beside it."
    )


def _way_back(drift: Drift) -> str:
    """What a person does who wants what stands: they name the versions of its corpora, if nothing else has changed."""
    settings = [_setting_back(difference, drift.node.config) for difference in drift.differences]
    if all(settings):
        return f"Add {' '.join(filter(None, settings))}"
    return f"Restore the {'value' if len(settings) == 1 else 'values'}"


def _setting_back(difference: Difference, config: RunConfig) -> str | None:
    """None where no setting leads back: it is not of a corpus, or that version is gone."""
    group, _, name = difference.field.partition(".")
    if group != "corpora" or name not in config.corpora:
        return None
    versions = corpus_versions(config.paths.data, config.tokenizer, config.packing.seq_len, name)
    return f"corpora.{name}.version={difference.old[:DIGITS]}" if difference.old in versions else None


def _row(difference: Difference, drift: Drift) -> tuple[str, str, str]:
    group, _, name = difference.field.partition(".")
    if group == "corpora" and difference.old is not None and difference.new is not None:
        manifest = corpus_folders(drift.node.config, {name: drift.node.plan.corpora[name]})[name] / MANIFEST
        return (
            difference.field,
            f"{difference.old[:12]} ({drift.standing.folder.corpora})",
            f"{difference.new[:12]} ({manifest})",
        )
    return difference.field, _said(difference.old), _said(difference.new)


def _said(value: Any) -> str:
    """A value in a table: digests cut short, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {entry}" for name, entry in value.items())
    text = str(value)
    return text[:12] if len(text) == 64 else text
