"""What the benchmarks of training share: model sizes, turns in one process and the ratios over them, tables."""

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllama.config.schema import ModelConfig, OptimizerConfig
from tinyllama.training.breakdown import Breakdown
from tinyllama.training.profile import Window, recorder, write_trace

PRESETS = {
    "tiny": {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 64, "vocab": 512, "seq": 32},
    "nano": {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2, "ffn": 352, "vocab": 4096, "seq": 128},
    "120m": {"layers": 12, "hidden": 768, "heads": 12, "kv_heads": 4, "ffn": 2048, "vocab": 32000, "seq": 512},
    "1b": {"layers": 22, "hidden": 2048, "heads": 32, "kv_heads": 4, "ffn": 5632, "vocab": 32000, "seq": 2048},
}
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}
"""Dense bf16, of the SXM boards."""

OPTIMIZER = OptimizerConfig(learning_rate=4e-4, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)

Step = Callable[[Sequence[Tensor]], Tensor]
"""Micro-batches of an optimizer step, each int64 [micro_batch, seq_len + 1] -> their mean loss before it, unread."""


def add_model_options(parser: argparse.ArgumentParser, preset: str) -> None:
    parser.add_argument("--preset", choices=PRESETS, default=preset)
    for size in PRESETS[preset]:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="instead of the preset's")


def model_config(options: argparse.Namespace) -> ModelConfig:
    preset = PRESETS[options.preset]
    size = {name: getattr(options, name) or preset[name] for name in preset}
    return ModelConfig(
        name=options.preset,
        vocab_size=size["vocab"],
        hidden_size=size["hidden"],
        intermediate_size=size["ffn"],
        num_layers=size["layers"],
        num_heads=size["heads"],
        num_kv_heads=size["kv_heads"],
        seq_len=size["seq"],
    )


def machine() -> dict[str, Any]:
    """What was measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_tflops() -> float | None:
    """Of the GPU, where it is known."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock() -> float:
    """Seconds. Where one thread of a CPU computes, its own, which other work on the machine disturbs less."""
    alone = not torch.cuda.is_available() and torch.get_num_threads() == 1 and not _several_ranks()
    return time.process_time() if alone else time.perf_counter()


def _several_ranks() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def timed(work: Callable[[], object]) -> float:
    """Seconds until the device has done it, too."""
    synchronize()
    begin = clock()
    work()
    synchronize()
    return clock() - begin


def take_turns(works: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each, turn by turn; who begins changes, and one turn before them warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(1 + turns):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            gc.collect()
            seconds[name].append(timed(works[name]))
    return {name: values[1:] for name, values in seconds.items()}


def ratio(seconds: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """How many times as fast `one` is, the median over pairs of a turn: what disturbs both of a pair cancels."""
    return statistics.median(theirs / mine for mine, theirs in zip(seconds[one], seconds[other], strict=True))


def recorded(step: Callable[[], object], steps: int = 2) -> Breakdown:
    """Where a step goes, by the recorder behind profile=true."""
    found: list[Breakdown] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json.gz")
        with recorder(Window(1, steps), lambda profiler: found.append(write_trace(profiler, path))) as profiler:
            for _ in range(1 + steps):
                step()
                synchronize()
                profiler.step()
    return found[0]


def peak_gib(work: Callable[[], object]) -> float | None:
    """What the GPU holds at most during it, beyond what it held before; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def gib_allocated() -> float:
    """On the GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def columns(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for people: the first column stands left, the others right; what is None stays empty, and a column of
    nothing else is left out.
    """
    told = [i for i in range(len(headings)) if i == 0 or any(row[i] is not None for row in rows)]
    texts = [[headings[i] for i in told], *([_text(row[i]) for i in told] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in texts
    )


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def parts_table(breakdown: Mapping[str, Any]) -> str:
    """Where a step goes (training/breakdown.py), of a document; what did not happen is left out."""
    whole = {"host_seconds": breakdown["seconds"], "device_seconds": breakdown["device_seconds"]}
    rows = [
        [part["name"].replace("_", " "), part["host_seconds"] * 1e3, part["share"] * 100, _ms(part["device_seconds"])]
        for part in [*breakdown["parts"], {"name": "step", "share": 1.0, **whole}]
        if part["host_seconds"] > 0
    ]
    return columns(["recorded, a step", "host, ms", "%", "device, ms"], rows)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def show(result: Mapping[str, Any], table: Callable[[Mapping[str, Any]], str], as_json: bool) -> None:
    print(json.dumps(result) if as_json else table(result), flush=True)
