"""Tokens per second of a training step: ZeroEngine against the same model in a bare PyTorch loop.

    python benchmarks/train_step.py --preset nano
    python benchmarks/train_step.py --preset 1b --micro-batch 8 --compile --json

Needs torch, deepspeed and this package; runs on the CPU or on one GPU. Both take turns in one process, so that the
ratio holds on a shared machine; the figures are medians over the turns, the ratio over pairs of turns.
"""

import argparse
import copy
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from tinyllama.config.schema import ClusterConfig, ModelConfig, OptimizerConfig, Precision
from tinyllama.engine.startup import device, finalize, initialize, run_ranks
from tinyllama.engine.zero import ZeroEngine, computes_in_bf16
from tinyllama.model.llama import Llama, build_model
from tinyllama.planning.flops import flops_per_token, num_parameters

PRESETS = {
    "nano": {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2, "ffn": 352, "vocab": 4096, "seq": 128},
    "120m": {"layers": 12, "hidden": 768, "heads": 12, "kv_heads": 4, "ffn": 2048, "vocab": 32000, "seq": 512},
    "1b": {"layers": 22, "hidden": 2048, "heads": 32, "kv_heads": 4, "ffn": 5632, "vocab": 32000, "seq": 2048},
}
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}
"""Dense bf16, of the SXM boards."""

OPTIMIZER = OptimizerConfig(learning_rate=4e-4, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)

Step = Callable[[list[Tensor]], object]


def main() -> None:
    options = parse()
    reports: list[dict] = []
    run_ranks(lambda: measure(options, reports), (), processes=1)
    if options.json:
        print(json.dumps(reports[0]))
    else:
        for name, value in reports[0].items():
            print(f"{name:>28}  {value:,.4g}" if isinstance(value, float) else f"{name:>28}  {value}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    for size in PRESETS["nano"]:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="instead of the preset's")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences per forward pass")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches per step")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--precision", choices=[precision.value for precision in Precision], default="auto")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, help="on the CPU; all cores by default")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="per turn")
    parser.add_argument("--only", choices=["zero", "bare"], help="where two models do not fit in memory")
    parser.add_argument("--peak-tflops", type=float, help="of the device; known for some GPUs")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser.parse_args()


def measure(options: argparse.Namespace, reports: list[dict]) -> None:
    cluster = ClusterConfig(
        name="benchmark",
        micro_batch=options.micro_batch,
        zero_stage=options.zero_stage,
        precision=Precision(options.precision),
        attention=options.attention,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
        threads=options.threads,
    )
    world = initialize(cluster)
    config = model_config(options)
    model = build_model(config, cluster.attention, device(), cluster.activation_checkpointing)
    model.initialize(seed=0)
    steps: dict[str, Step] = {}
    if options.only != "zero":
        steps["bare"] = bare_loop(copy.deepcopy(model), cluster)
    if options.only != "bare":
        engine = ZeroEngine(model, OPTIMIZER, cluster, options.accumulation, world)
        steps["zero"] = lambda batches: engine.step(batches, OPTIMIZER.learning_rate)
    shape = (options.accumulation, options.micro_batch, config.seq_len + 1)
    batches = list(torch.randint(config.vocab_size, shape, device=device()))
    seconds = take_turns(steps, batches, options.turns, options.steps)
    finalize()
    tokens = options.accumulation * options.micro_batch * config.seq_len
    reports.append(
        report(options, config, {name: tokens / statistics.median(turns) for name, turns in seconds.items()})
    )
    if len(seconds) == 2:  # turn by turn, so that what disturbed both of a pair cancels
        pairs = zip(seconds["bare"], seconds["zero"], strict=True)
        reports[0]["zero_over_bare"] = statistics.median(bare / zero for bare, zero in pairs)


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


def bare_loop(model: Llama, cluster: ClusterConfig) -> Step:
    """What one would write without an engine; in bf16 by autocast, which keeps the weights in fp32 as well."""
    adam = torch.optim.AdamW(
        model.parameters(), lr=4e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=OPTIMIZER.weight_decay, fused=True
    )
    bf16 = computes_in_bf16(cluster, device())
    if cluster.compile:
        model.compile()

    def step(batches: list[Tensor]) -> None:
        for tokens in batches:
            with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
                loss = model(tokens).mean() / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


def take_turns(
    steps: dict[str, Step], batches: list[Tensor], turns: int, steps_per_turn: int
) -> dict[str, list[float]]:
    """Seconds per step, turn by turn; one turn before them warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + turns):
        for name, step in steps.items():
            gc.collect()
            synchronize()
            start = time.perf_counter()
            for _ in range(steps_per_turn):
                step(batches)
            synchronize()
            seconds[name].append((time.perf_counter() - start) / steps_per_turn)
    return {name: values[1:] for name, values in seconds.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(options: argparse.Namespace, config: ModelConfig, speeds: dict[str, float]) -> dict:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    known = [peak for name, peak in PEAK_TFLOPS.items() if gpu is not None and name in gpu]
    peak_tflops = options.peak_tflops or (known[0] if known else None)
    result: dict = {
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "parameters": num_parameters(config),
        "tokens_per_step": options.accumulation * options.micro_batch * config.seq_len,
        "zero_stage": options.zero_stage,
        "compile": options.compile,
    }
    for name, speed in speeds.items():
        result[f"{name}_tokens_per_second"] = speed
        if peak_tflops is not None:
            for convention, causal in (("mfu", False), ("mfu_causal", True)):
                result[f"{name}_{convention}"] = speed * flops_per_token(config, causal) / (peak_tflops * 1e12)
    if gpu is not None:
        result["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result


if __name__ == "__main__":
    main()
