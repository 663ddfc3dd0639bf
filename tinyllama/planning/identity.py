"""What a run means, and the digest of it. Placement never enters: it lives in other dataclasses of the schema."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from hashlib import sha256
from typing import Any

from tinyllama.config.schema import RunConfig
from tinyllama.planning.corpora import Inventory

_LABELS = {"name"}
"""Fields of models and tokenizers that people call them by: renaming one changes nothing."""


def meaning(
    config: RunConfig, weights: Mapping[str, float], inventory: Inventory, parent: str | None
) -> dict[str, Any]:
    """All that decides what stage `config` computes; readable, comparable field by field.

    Args:
        weights: the stage's target mixture, as fractions; its names are the corpora that count.
        parent: digest of the stage that this one continues.
    """
    stage = {name: value for name, value in asdict(config.stage).items() if name not in ("parent", "mix")}
    tokenizer = {name: value for name, value in asdict(config.tokenizer).items() if name not in _LABELS | {"path"}}
    return {
        "model": {name: value for name, value in asdict(config.model).items() if name not in _LABELS},
        "tokenizer": tokenizer | {"digest": inventory.tokenizer_digest},
        "corpora": {name: inventory.corpora[name].fingerprint for name in sorted(weights)},
        "mix": dict(weights),
        "stage": stage,
        "schedule": asdict(config.schedule),
        "optimizer": asdict(config.optimizer),
        "order": asdict(config.order),
        "seed": config.seed,
        "parent": parent,
    }


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical form of `value`."""
    return sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON that depends on nothing but the value: neither on the order of keys nor on how a number was spelled.

    Raises:
        TypeError: a value that has no canonical form, such as a set, or a number that is not finite.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names, for parameters and differences."""
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= flatten(entry, f"{prefix}{name}.")
        else:
            flat[prefix + name] = entry
    return flat


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no canonical form")
        return int(value) if value == int(value) else value
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"a mapping with keys other than text has no canonical form: {list(value)}")
        return {name: _plain(entry) for name, entry in value.items() if entry is not None}
    raise TypeError(f"{type(value).__name__} has no canonical form: {value!r}")
