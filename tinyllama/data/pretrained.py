"""A Hugging Face Llama as the start of a family: whether it fits, and the digest of its weights. Light: no torch."""

import json
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from tinyllama.config.schema import ModelConfig, RunConfig
from tinyllama.errors import ConfigError
from tinyllama.planning.corpora import HfModel
from tinyllama.planning.identity import digest

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_size",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
}
"""Their names of what must be equal, and ours."""

_OURS = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
"""Their settings of what our model has only one kind of."""


def origin_of(config: RunConfig, tokenizer_digest: str | None) -> HfModel | None:
    """The folder that a stage starts from, checked against its model and tokenizer; None where none is named.

    Raises:
        ConfigError: it is missing, is no Llama of these sizes, or has another vocabulary.
    """
    if config.stage.origin is None:
        return None
    folder = Path(config.stage.origin).expanduser()
    _check_sizes(folder, config.model)
    _check_vocabulary(folder, config, tokenizer_digest)
    files = _weight_files(folder)
    contents = {name: _content(path, path.stat().st_mtime_ns) for name in files if (path := folder / name)}
    return HfModel(str(folder), digest(contents), files)


def _check_sizes(folder: Path, model: ModelConfig) -> None:
    theirs = _read_json(folder / "config.json")
    theirs |= {name: value for name, value in theirs.get("rope_parameters", {}).items() if name == "rope_theta"}
    theirs.setdefault("num_key_value_heads", theirs.get("num_attention_heads"))
    for name, only in _OURS.items():
        if theirs.get(name, only) != only:
            raise ConfigError(
                f"stage.parent=hf:{folder}: {name} is {theirs[name]} in its config.json, and only {only} can be "
                f"trained here; choose another model"
            )
    for name, ours in _SIZES.items():
        if theirs.get(name) is not None and theirs[name] != getattr(model, ours):
            raise ConfigError(
                f"model.{ours}={getattr(model, ours)} differs from {name}={theirs[name]} of stage.parent=hf:"
                f"{folder}; choose the model that it is, or set model.{ours}={theirs[name]}"
            )
    longest = theirs.get("max_position_embeddings", model.seq_len)
    if model.seq_len > longest:
        raise ConfigError(
            f"model.seq_len={model.seq_len} is longer than the {longest} positions that stage.parent=hf:{folder} "
            f"was trained for; set model.seq_len={longest} or less"
        )


def _check_vocabulary(folder: Path, config: RunConfig, tokenizer_digest: str | None) -> None:
    """Token ids must mean the same to both: their tokenizer.model, where there is one, is ours."""
    theirs, ours = folder / "tokenizer.model", Path(config.tokenizer.path)
    if not theirs.is_file():
        return
    expected = tokenizer_digest or (sha256(ours.read_bytes()).hexdigest() if ours.is_file() else None)
    if expected is not None and sha256(theirs.read_bytes()).hexdigest() != expected:
        raise ConfigError(
            f"tokenizer.path={ours} is another model than {theirs}, so the ids of stage.parent=hf:{folder} would "
            f"mean other text; set tokenizer.path={theirs} and prepare the corpora with it"
        )


def _weight_files(folder: Path) -> tuple[str, ...]:
    index = folder / "model.safetensors.index.json"
    names = sorted(set(_read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise ConfigError(
                f"stage.parent=hf:{folder} has no {name}; the weights must be in safetensors, as "
                f"save_pretrained writes them"
            )
    return tuple(names)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"stage.parent=hf:{path.parent}: {path.name} cannot be read ({error}); name a folder that "
            f"save_pretrained wrote"
        ) from error


@cache  # a tree asks for the same folder once per job, and hashing takes a second per gigabyte or more
def _content(path: Path, modified_ns: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
