"""What was published of TinyLlama v1.1, and of which of our models it may be held against."""

from collections.abc import Mapping
from pathlib import Path

from tinyllama.config.schema import ModelConfig

_COMMONSENSE = ("hellaswag", "openbookqa", "winogrande", "arc_challenge", "arc_easy", "boolq", "piqa")
_PROBLEM_SOLVING = ("mmlu", "bbh_fewshot", "humaneval", "drop")
_CHINESE = ("xwinograd_zh", "xstorycloze_zh", "xnli_zh", "xcopa_zh")


def _rows(commonsense: str, problem_solving: str, chinese: str) -> dict[str, float]:
    columns = (*_COMMONSENSE, *_PROBLEM_SOLVING, *_CHINESE)
    return dict(zip(columns, map(float, f"{commonsense} {problem_solving} {chinese}".split()), strict=True))


PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "standard": _rows("61.47 36.80 59.43 32.68 55.47 55.99 73.56", "26.58 29.27 6.71 15.21", "55.75 47.98 34.70 51.40"),
    "math_code": _rows(
        "60.80 36.40 60.22 33.87 55.20 57.09 72.69", "24.60 26.35 15.24 18.54", "63.69 56.32 33.57 57.00"
    ),
    "chinese": _rows("58.23 35.20 59.27 31.40 55.35 61.41 73.01", "26.35 30.04 4.88 15.75", "74.20 60.29 33.77 65.20"),
}
"""In percent, by variant and task (Zhang et al. 2024, https://arxiv.org/abs/2401.02385)."""

_FOLDERS = {
    "TinyLlama_v1.1": "standard",
    "TinyLlama_v1.1_math_code": "math_code",
    "TinyLlama_v1.1_chinese": "chinese",
}
"""What the authors call their models."""

_TOKENS = 2_000_000_000_000
_SIZES = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_layers": 22, "num_heads": 32}


def published_of_run(variant: str, model: ModelConfig, tokens: int) -> Mapping[str, float]:
    """For a model of the original's sizes that was trained on the original's 2T tokens (to a thousandth); else none."""
    same_sizes = all(getattr(model, name) == size for name, size in _SIZES.items())
    same_life = abs(tokens - _TOKENS) <= _TOKENS / 1000
    return PUBLISHED.get(variant, {}) if same_sizes and same_life else {}


def published_of_folder(folder: Path) -> Mapping[str, float]:
    """For the authors' own models, under the names that they gave them; else none."""
    return PUBLISHED.get(_FOLDERS.get(folder.name, ""), {})
