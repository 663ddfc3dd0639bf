"""Whether a run has seen a sample: the order asked backwards, nothing scanned."""

from collections.abc import Sequence
from typing import Any

from tinyllama.checkpoint.manifest import read_manifest
from tinyllama.errors import ConfigError, DamageError, unknown
from tinyllama.proof.adoption import Adoption, adoption_of
from tinyllama.proof.record import Record


def sightings(records: Sequence[Record], question: str) -> dict[str, Any]:
    """When the last checkpoint of a run, and its ancestors before it, had been trained on CORPUS:SAMPLE.

    The sample is one of the run. Of ancestors that read at another length it is those that share text with it.

    `known_from_tokens` of the answer is the position of life from which it is certain: what lies before an adoption
    was read by another run.

    Args:
        records: the root first.

    Raises:
        ConfigError: the question cannot be read, or there is no such corpus or sample.
    """
    name, sample = _parse(records, question)
    seen: list[dict[str, Any]] = []
    known_from = 0
    for record, child in zip(records, [*records[1:], None], strict=True):
        plan = record.plan
        end = child.plan.start_tokens if child else max(record.folder.checkpoint_tokens(), default=plan.start_tokens)
        if (adopted := _adoption(record)) is not None:
            seen, known_from = [], adopted.progress.tokens
        if name not in plan.corpora:
            continue
        stop, shards = (end - plan.start_tokens) // plan.seq_len, plan.corpora[name].shard_samples
        samples = records[-1].plan.view.overlapping(sample, plan.view, shards)
        for draw, position in sorted(found for each in samples for found in plan.order.occurrences(name, each, stop)):
            step = position // plan.batch_samples + 1
            tokens = plan.start_tokens + step * plan.batch_tokens
            if tokens > known_from:
                seen.append({"stage": plan.stage, "digest": plan.digest, "draw": draw, "step": step, "tokens": tokens})
    return {"corpus": name, "sample": sample, "times": len(seen), "seen": seen, "known_from_tokens": known_from}


def _adoption(record: Record) -> Adoption | None:
    """By the newest manifest that can be read; damage is for the checks to name."""
    for tokens in reversed(record.folder.checkpoint_tokens()):
        try:
            return adoption_of([read_manifest(record.folder.checkpoint(tokens))])
        except DamageError:
            continue
    return None


def _parse(records: Sequence[Record], question: str) -> tuple[str, int]:
    corpora = {name: corpus for record in records for name, corpus in record.plan.corpora.items()}
    name, colon, number = question.rpartition(":")
    if not colon or not number.isdecimal():
        raise ConfigError(f"contains={question} is not CORPUS:SAMPLE; write for example {next(iter(corpora))}:0")
    if name not in corpora:
        raise unknown("contains", name, corpora)
    samples = records[-1].plan.view.samples(corpora[name].shard_samples)
    if int(number) >= samples:
        raise ConfigError(f"contains={question}: the training split of {name} has samples 0 to {samples - 1}")
    return name, int(number)
