"""What a store says of a run against what the run's own files say. Pure, and knows no vendor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tinyllama.lineage.record import RunRecord


@dataclass(frozen=True)
class Version:
    """A version of the family's model."""

    number: str
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A run as a store has it."""

    run_id: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    fingerprints: Mapping[str, str]
    """Of the datasets that were its inputs."""
    last_step: int | None
    """The last one that was recorded."""
    versions: tuple[Version, ...]
    """What it has become."""


def compare(
    record: RunRecord,
    there: Recorded,
    parent: Recorded | None,
    *,
    finished: bool,
    last_step: int,
    longest_param: int,
) -> Iterator[str]:
    """Each difference in a sentence.

    Args:
        parent: the run of the parent's digest in the store.
        last_step: the last one of the run's journal.
        longest_param: characters that the store keeps of a parameter.
    """
    if finished:
        yield from _differs("status", "FINISHED", there.status)
    for name, value in record.params.items():
        yield from _differs(f"param {name}", str(value)[:longest_param], there.params.get(name))
    for name in sorted(set(there.params) - set(record.params)):
        yield from _differs(f"param {name}", None, there.params[name])
    identity = {"digest": record.digest, "parent_digest": record.parent_digest, "stage": record.stage}
    for name, expected in identity.items():
        yield from _differs(f"tag {name}", expected, there.tags.get(name))
    yield from _compare_parent_run(record, there, parent)
    fingerprints = {dataset.name: dataset.fingerprint for dataset in record.datasets}
    for name in sorted({*fingerprints, *there.fingerprints}):
        yield from _differs(f"fingerprint of dataset {name}", fingerprints.get(name), there.fingerprints.get(name))
    yield from _compare_steps(record, there, finished, last_step)
    if finished:
        yield from _compare_versions(record, there, parent)


def _compare_parent_run(record: RunRecord, there: Recorded, parent: Recorded | None) -> Iterator[str]:
    if record.parent_digest is not None and parent is None:
        yield f"parent run: digest {record.parent_digest[:12]} here, no run of it there"
    expected = None if parent is None else parent.run_id
    for name in ("parent_run_id", "mlflow.parentRunId"):
        yield from _differs(f"tag {name}", expected, there.tags.get(name))


def _compare_steps(record: RunRecord, there: Recorded, finished: bool, last_step: int) -> Iterator[str]:
    """The last steps of a journal may be too few to be due, or be due because of a validation."""
    due = last_step - last_step % record.every_steps
    found = there.last_step or 0
    # What an interrupted run had recorded after its last checkpoint it takes again when it goes on.
    if found < due or (finished and found > last_step):
        yield f"last recorded step: {due} here, {found} there"


def _compare_versions(record: RunRecord, there: Recorded, parent: Recorded | None) -> Iterator[str]:
    if len(there.versions) != 1:
        yield f"model versions of the run: 1 here, {len(there.versions)} there"
        return
    (version,) = there.versions
    yield from _differs(f"tag digest of model version {version.number}", record.digest, version.tags.get("digest"))
    parent_version = parent.versions[0].number if parent is not None and parent.versions else None
    found = version.tags.get("parent_version")
    yield from _differs(f"tag parent_version of model version {version.number}", parent_version, found)


def _differs(field: str, here: str | None, there: str | None) -> Iterator[str]:
    if here != there:
        yield f"{field}: {_shown(here)} here, {_shown(there)} there"


def _shown(value: str | None) -> str:
    return "nothing" if value is None else value
