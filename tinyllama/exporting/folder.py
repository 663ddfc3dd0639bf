"""A checkpoint as a folder in Hugging Face's layout, which appears whole and compared with the model, or not at all."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyllama.checkpoint.choice import Chosen, tokenizer_file, weights_file
from tinyllama.checkpoint.files import why_not_written
from tinyllama.config.schema import ExportConfig
from tinyllama.data.disk import sync, sync_tree
from tinyllama.data.reporter import Reporter, silent
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError
from tinyllama.exporting.card import model_card
from tinyllama.exporting.comparison import compare, held_out
from tinyllama.exporting.history import read_history
from tinyllama.exporting.weights import DTYPES, Weights, write_weights
from tinyllama.model.hf import hf_config
from tinyllama.model.llama import parameter_shapes
from tinyllama.model.transformers import hf_tokenizer

GIB = 2**30


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: Mapping[str, int]
    """Their sizes in bytes."""
    max_logit_difference: float

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def export(chosen: Chosen, config: ExportConfig, folder: Path, tell: Reporter = silent) -> Exported:
    """Write the folder aside, compare it with the checkpoint, and give it its name.

    Raises:
        ConfigError: the folder cannot be written, a weight is beyond the precision, or the tokenizer is gone or of a
            kind that Hugging Face's does not follow.
        DamageError: the checkpoint or a record of the run is damaged.
        RuntimeError: the folder is not the model: a fault of this program.
    """
    if config.shard_gib <= 0:
        raise ConfigError(f"export.shard_gib={config.shard_gib} must be above 0")
    aside = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of one that was cut short
        aside.mkdir(parents=True)
        try:
            difference = _fill(aside, chosen, config, tell)
            sync_tree(aside)
            files = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
            aside.rename(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync(folder.parent)
    except OSError as error:
        raise ConfigError(f"out={folder} cannot be written: {why_not_written(error, folder.parent)}") from error
    return Exported(folder, files, difference)


def _fill(folder: Path, chosen: Chosen, config: ExportConfig, tell: Reporter) -> float:
    """All files; returns the largest difference of logits."""
    model, dtype = chosen.config.model, DTYPES[config.dtype]
    model_file = tokenizer_file(chosen)
    tokenizer = Tokenizer(chosen.config.tokenizer, model_file.read_bytes())
    weights = Weights(weights_file(chosen), parameter_shapes(model))
    steps = ("writing weights", "comparing with the checkpoint")
    tell(steps[0], 0, 1)
    _write_json(folder / "config.json", _config(chosen, tokenizer, dtype))
    _write_json(folder / "generation_config.json", _marks(tokenizer) | {"do_sample": False})
    _write_tokenizer(folder, chosen, model_file)
    write_weights(weights, model, dtype, config.shard_gib * GIB, folder)
    tell(steps[0], 1, 1)
    tell(steps[1], 0, 1)
    sequences, ids = held_out(chosen)
    difference = compare(folder, weights, model, dtype, tokenizer, ids)
    tell(steps[1], 1, 1)
    card = model_card(chosen, read_history(chosen), config.dtype.value, difference, sequences)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return difference


def _config(chosen: Chosen, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    return hf_config(chosen.config.model) | _marks(tokenizer) | {"torch_dtype": str(dtype).removeprefix("torch.")}


def _marks(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}


def _write_tokenizer(folder: Path, chosen: Chosen, model_file: Path) -> None:
    """The sentencepiece model and Hugging Face's own files.

    Of the settings that transformers saves, those without a value go: converters take a null for a no. And the class
    goes by the name that says nothing of the library behind it.
    """
    hf_tokenizer(model_file, chosen.config.tokenizer, chosen.config.model.seq_len).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_bytes())
    kept = {name: value for name, value in settings.items() if value is not None and name != "add_prefix_space"}
    _write_json(path, kept | {"tokenizer_class": "LlamaTokenizer"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
