"""Our parameter names <-> those of Hugging Face's LlamaForCausalLM; to start from their weights, and to export."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyllama.config.schema import ModelConfig
from tinyllama.errors import DamageError
from tinyllama.planning.corpora import HfModel

_OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_INSIDE = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "feed_forward_norm": ("post_attention_layernorm",),
    "feed_forward.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "feed_forward.down": ("mlp.down_proj",),
}
"""Of each block; a matrix of ours is several of theirs, one below the other."""


def hf_config(config: ModelConfig) -> dict[str, object]:
    """The fields of LlamaConfig that describe our model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.seq_len,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def to_hf(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict (or gradients by name) under Hugging Face's names; the tensors are views of ours."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = _hf_names(name)
        theirs.update(zip(names, tensor.split(_rows(name, config) or [len(tensor)]), strict=True))
    return theirs


def from_hf(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Hugging Face's state dict under our names."""
    blocks = [f"blocks.{i}.{part}.weight" for i in range(config.num_layers) for part in _INSIDE]
    return {name: torch.cat([state[theirs] for theirs in _hf_names(name)]) for name in [*_OUTSIDE, *blocks]}


def read_hf(model: HfModel, config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a folder that save_pretrained wrote, under our names, in the precision of the files.

    Raises:
        DamageError: a file cannot be read, or a tensor is missing.
    """
    theirs: dict[str, Tensor] = {}
    for name in model.files:
        path = Path(model.folder) / name
        try:
            with safe_open(path, "pt") as file:
                theirs |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
        except SafetensorError as error:
            raise DamageError(f"{path} cannot be read: {error}; fetch it again") from error
    if "lm_head.weight" not in theirs and "model.embed_tokens.weight" in theirs:  # tied, as their config says
        theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"]
    try:
        return from_hf(theirs, config)
    except KeyError as error:
        raise DamageError(f"{model.folder} holds no tensor {error}; fetch it again") from error


def _hf_names(name: str) -> list[str]:
    if name in _OUTSIDE:
        return [_OUTSIDE[name]]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    assert match is not None, f"{name} is no parameter of Llama"
    return [f"model.layers.{match[1]}.{part}.weight" for part in _INSIDE[match[2]]]


def _rows(name: str, config: ModelConfig) -> list[int] | None:
    """How the rows of a merged matrix are divided; None for the others."""
    if name.endswith("attention.qkv.weight"):
        return [heads * config.head_size for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    if name.endswith("feed_forward.gate_up.weight"):
        return [config.intermediate_size] * 2
    return None
