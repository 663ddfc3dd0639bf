"""`cluster.micro_batch=auto`: which number it stands for, by what runs have measured.

The first run of a model on a cluster measures (training/micro_batch.py) and leaves its answer in the folder of runs.
Here it becomes a number: behind config/load.py a micro-batch is an int, whatever was given.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tinyllama.config.checks import total_ranks
from tinyllama.config.schema import RunConfig
from tinyllama.errors import ConfigError, DamageError

AUTO = "auto"

_FOLDER = ".micro_batches"
"""Beside the families, whose names begin with no dot."""
_PROVISIONAL = 8
"""No more samples than that are reckoned with before anything has been measured."""
_CLUSTER = (
    "nodes", "zero_stage", "shard_within_node", "precision", "attention", "compile", "loss", "activation_checkpointing",
    "threads",
)  # fmt: skip
"""The settings of a cluster that an answer depends on, besides the number of ranks."""


@dataclass(frozen=True)
class Answer:
    """What was measured."""

    micro_batch: int
    """The fastest of those that fit."""
    device: str
    """On which it was measured."""
    seconds: Mapping[str, float]
    """Of a sample, by micro-batch."""


def settle(config: RunConfig) -> None:
    """Make `config.cluster.micro_batch` an int, in place: of auto the measured one, else a provisional one.

    Raises:
        ConfigError: it is neither auto nor a number above 0.
    """
    cluster = config.cluster
    if cluster.micro_batch == AUTO:
        cluster.micro_batch_is_auto = True
    else:
        cluster.micro_batch = _number(cluster.micro_batch)
    if cluster.micro_batch_is_auto:  # one that was written down may have been provisional
        known = measured_anywhere(config)
        cluster.micro_batch = known.micro_batch if known else _provisional(config)


def share(config: RunConfig) -> int:
    """Samples of a batch that each rank trains on; 0 where they cannot be shared evenly."""
    per_rank = total_ranks(config.cluster) * config.model.seq_len
    if per_rank < 1 or config.stage.batch_tokens % per_rank:
        return 0
    return int(config.stage.batch_tokens) // per_rank


def divisors(number: int) -> list[int]:
    """Growing."""
    low = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*low, *(number // each for each in low)})


def source(config: RunConfig) -> str:
    """Where the micro-batch comes from, for people."""
    if not config.cluster.micro_batch_is_auto:
        return "as configured"
    if share(config) == 1:
        return "the only one that divides a rank's share"
    known = measured_anywhere(config)
    return f"measured on {known.device}" if known else "provisional until the first run measures"


# ---------------------------------------------------------------- what is remembered


def question(config: RunConfig) -> dict[str, Any]:
    """All that an answer depends on, but the device."""
    cluster = {name: getattr(config.cluster, name) for name in _CLUSTER}
    model = {name: value for name, value in asdict(config.model).items() if name != "name"}
    return {
        "model": model,
        "cluster": cluster | {"precision": config.cluster.precision.value, "ranks": total_ranks(config.cluster)},
        "samples": share(config),
        "versions": {name: _version(name) for name in ("deepspeed", "torch")},
    }


def answer_path(config: RunConfig, device: str) -> Path:
    """The file that holds the answer for a device."""
    told = "".join(letter if letter.isalnum() else "-" for letter in device)
    return Path(config.paths.runs) / _FOLDER / f"{_name(config)}-{told}.json"


def answer_text(config: RunConfig, answer: Answer) -> str:
    """The content of that file."""
    return json.dumps(_sealed({"question": question(config)} | asdict(answer)), indent=1) + "\n"


def read_answer(config: RunConfig, path: Path) -> Answer | None:
    """The answer in a file; None if there is no file.

    Raises:
        DamageError: it is damaged, or answers another question.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        said = {name: value for name, value in found.items() if name != "seal"}
        answer = Answer(**{name: value for name, value in said.items() if name != "question"})
        sound = found == _sealed(said)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamageError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if not sound:
        raise DamageError(f"{path} is damaged: its content is not what its seal vouches for")
    if said.get("question") != question(config) or share(config) % answer.micro_batch:
        raise DamageError(f"{path} is about another model, cluster or version")
    return answer


def measured_anywhere(config: RunConfig) -> Answer | None:
    """The last sound answer of all devices: who plans need not sit at the one that will train."""
    found = (Path(config.paths.runs) / _FOLDER).glob(f"{_name(config)}-*.json")
    with suppress(OSError):
        for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
            with suppress(DamageError):
                return read_answer(config, path)
    return None


def _version(package: str) -> str | None:
    """Without importing it."""
    from importlib.metadata import PackageNotFoundError, version  # 15 ms that only micro_batch=auto needs

    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _name(config: RunConfig) -> str:
    return _digest(question(config))[:16]


def _sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**fields, "seal": _digest(fields)}


def _digest(fields: Mapping[str, Any]) -> str:
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- what else it can be


def _provisional(config: RunConfig) -> int:
    return max((size for size in divisors(share(config)) if size <= _PROVISIONAL), default=1)


def _number(value: Any) -> int:
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if number < 1:
        raise ConfigError(
            f"cluster.micro_batch={'null' if value is None else value} must be a whole number above 0, or auto, which "
            f"takes the fastest that fits"
        )
    return number
