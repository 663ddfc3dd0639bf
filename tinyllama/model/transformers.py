"""Our weights and tokenizer as Hugging Face's objects, and folders in their layout. The only user of transformers."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tinyllama.config.schema import ModelConfig, TokenizerConfig
from tinyllama.errors import ConfigError
from tinyllama.model.hf import hf_config, to_hf


@cache
def library() -> Any:
    """The package transformers, quiet.

    torchvision's operators are declared where its wheel does not fit torch: transformers imports it when it is there.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        _declare_operators()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if not torch.cuda.is_available():  # else DeepSpeed, which accelerate imports, says so on standard output
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"transformers is not installed ({error}); pip install 'tinyllama[eval]'") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers


def place() -> tuple[torch.device, torch.dtype]:
    """Where a model answers, and in what: in bf16 on a GPU if there is one, else in fp32."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), torch.float32


def hf_model(state: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype) -> Any:
    """LlamaForCausalLM with our weights, ready to be asked; it shares them where they are of `dtype` already."""
    transformers = library()
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config(config), dtype=dtype))
    theirs = {name: tensor.to(dtype) for name, tensor in to_hf(state, config).items()}
    model.load_state_dict(theirs, strict=True, assign=True)
    # What is computed from the configuration is in no state.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.requires_grad_(False).eval()


def hf_tokenizer(path: Path, config: TokenizerConfig, seq_len: int) -> Any:
    """A sentencepiece model as their tokenizer, which gives the ids of data/tokenizer.py for any text.

    BOS comes first where training began documents with it. EOS is never added, though training ended documents with
    it: what is tokenised here is the beginning of a text, which the model is to continue.

    Raises:
        ConfigError: UNK, BOS and EOS are not its pieces 0, 1 and 2, as their Llama tokenizer takes for granted.
    """
    tokenizer = library().LlamaTokenizerFast(
        vocab_file=str(path),
        add_bos_token=config.add_bos,
        add_eos_token=False,
        add_prefix_space=True,
        legacy=True,  # as sentencepiece does it; the other way loses a space at the beginning
        split_special_tokens=True,  # "</s>" in a text is text
        clean_up_tokenization_spaces=False,
        model_max_length=seq_len,
    )
    if (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) != (0, 1, 2):
        raise ConfigError(
            f"tokenizer.path={path}: UNK, BOS and EOS are not its pieces 0, 1 and 2, which Hugging Face's Llama "
            f"tokenizer takes for granted; such a model cannot be used there"
        )
    return tokenizer


def load_hf(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a folder in Hugging Face's layout; nothing is downloaded.

    Raises:
        ConfigError: it is none, or cannot be loaded.
    """
    transformers = library()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is no folder of a Hugging Face model: it has no config.json")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{folder} cannot be loaded as a Hugging Face model: {reason}") from error
    return model.requires_grad_(False).eval(), tokenizer


def _declare_operators() -> None:
    """Those that torchvision describes in Python and its own library, which cannot be loaded, would have defined."""
    operators = torch.library.Library("torchvision", "FRAGMENT")
    _kept.append(operators)
    for name in ("nms", "qnms"):
        with suppress(RuntimeError):  # it is there already
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_kept: list[torch.library.Library] = []
"""Definitions last as long as this."""
