"""What a run means, and the digest of it. Placement never enters: it lives in other dataclasses of the schema."""

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from hashlib import sha256
from typing import Any

from tinyllama.config.schema import RunConfig
from tinyllama.planning.corpora import Inventory

_LABELS = {"name"}
"""Fields of models and tokenizers that people call them by: renaming one changes nothing."""


def meaning(
    config: RunConfig,
    weights: Mapping[str, float],
    inventory: Inventory,
    parent: str | None,
    start_weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All that decides what stage `config` computes, in values that JSON knows; comparable field by field.

    Args:
        weights: the stage's target mixture, as fractions; its names are the corpora that count.
        parent: digest of the stage that this one continues, or "hf:" and that of the weights it starts from.

    Raises:
        TypeError: a setting of a kind that has no canonical form.
    """
    # Of the lengths, that of the stage is the model's, and that of the prepared samples is in the fingerprints.
    stage = {name: value for name, value in asdict(config.stage).items() if name not in ("parent", "mix", "seq_len")}
    tokenizer = {name: value for name, value in asdict(config.tokenizer).items() if name not in _LABELS | {"path"}}
    what: dict[str, Any] = {
        "model": {name: value for name, value in asdict(config.model).items() if name not in _LABELS},
        "tokenizer": tokenizer | {"digest": inventory.tokenizer_digest},
        "corpora": {name: inventory.corpora[name].fingerprint for name in sorted({*weights, *(start_weights or {})})},
        "mix": dict(weights),
        "stage": stage,
        "schedule": asdict(config.schedule),
        "optimizer": asdict(config.optimizer),
        "order": asdict(config.order),
        "seed": config.seed,
        "parent": parent,
    }
    if start_weights is not None:
        what["start_mix"] = dict(start_weights)
    return {name: _plain(value) for name, value in what.items()}


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical form of `value`."""
    return sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON that depends on nothing but the value.

    Neither the order of keys counts nor how a number was spelled (4e-4 is 0.0004, 1.0 is 1), nor how letters with
    accents are composed; an entry of a mapping that is None counts as not given.

    Raises:
        TypeError: a value that has no canonical form, such as a set, or a number that is not finite.
    """
    return json.dumps(_unified(_plain(value)), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names, for parameters and differences."""
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= flatten(entry, f"{prefix}{name}.")
        else:
            flat[prefix + name] = entry
    return flat


@dataclass(frozen=True)
class Difference:
    """A field in which two meanings differ; a value that one of them lacks is None."""

    field: str
    """Its dotted name, as `optimizer.learning_rate`."""
    old: Any
    new: Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The fields whose values have different digests, in the order of `new`; empty where the digests are equal.

    Raises:
        TypeError: a value that has no canonical form.
    """
    return list(_differences(_unified(_plain(old)), _unified(_plain(new)), ""))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[Difference]:
    for name in dict.fromkeys((*new, *old)):
        before, after = old.get(name), new.get(name)
        if canonical(before) == canonical(after):
            continue
        nested = _nests(before) and _nests(after)
        inside = list(_differences(before or {}, after or {}, f"{prefix}{name}.")) if nested else []
        yield from inside or [Difference(prefix + name, before, after)]


def _nests(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _plain(value: Any) -> Any:
    """The same in what JSON knows: enums as their values, tuples as lists."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no canonical form")
        return value
    if isinstance(value, str):
        # Of unassigned characters nobody knows yet how they compose; surrogates are what a failed decoding leaves.
        if not value.isascii() and any(unicodedata.category(letter) in ("Cn", "Cs") for letter in value):
            raise TypeError(f"text of characters that are not assigned has no canonical form: {value!r}")
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"a mapping with keys other than text has no canonical form: {list(value)}")
        return {_plain(name): _plain(entry) for name, entry in value.items()}
    raise TypeError(f"{type(value).__name__} has no canonical form: {value!r}")


def _unified(value: Any) -> Any:
    """One form for all plain values that mean the same."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list):
        return [_unified(entry) for entry in value]
    if isinstance(value, dict):
        given = {_unified(name): _unified(entry) for name, entry in value.items() if entry is not None}
        if len(given) < sum(entry is not None for entry in value.values()):
            raise TypeError(f"a mapping with two spellings of one key has no canonical form: {list(value)}")
        return given
    return value
