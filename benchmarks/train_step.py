"""Tokens per second of a training step: ours beside the loops that others would write.

    python benchmarks/train_step.py --preset nano
    python benchmarks/train_step.py --preset 1b --micro-batch 8 --compile --json

All train a Llama of the same sizes from the same weights on the same tokens; their losses at the first step are
compared. `zero` is ZeroEngine, `bare` the same model in a plain PyTorch loop, `transformers` Hugging Face's
LlamaForCausalLM with sdpa in that loop, `litgpt` litgpt's GPT where it is installed; `compiled`, which takes part when
it is named, is `zero` compiled beside others that are not. They take turns in one process, on the CPU or on one GPU, so
that the ratios hold on a shared machine: the figures are medians over the turns, the ratios over pairs of a turn. One
thread is timed by its own clock. Where a step of ours goes is recorded after the turns.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.contestants import CONTESTANTS, USUAL, Task, random_weights
from benchmarks.measuring import (
    Step,
    add_model_options,
    columns,
    gib_allocated,
    machine,
    model_config,
    parts_table,
    peak_gib,
    peak_tflops,
    ratio,
    recorded,
    show,
    take_turns,
    timed,
)
from tinyllama.config.schema import ClusterConfig, Precision
from tinyllama.engine.startup import device, finalize, initialize, run_ranks
from tinyllama.planning.flops import flops_per_token, num_parameters

CHECKPOINTING = {"false": False, "true": True, "selective": "selective"}
SETTINGS = (
    "micro_batch", "accumulation", "zero_stage", "precision", "attention", "loss", "compile", "activation_checkpointing"
)  # fmt: skip


def main() -> None:
    options = parse()
    results: list[dict[str, Any]] = []
    run_ranks(lambda: results.append(measure(options)), (), processes=1)
    show(results[0], table, options.json)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, "nano")
    parser.add_argument("--contestants", type=lambda text: text.split(","), default=list(USUAL), metavar="A,B")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences per forward pass")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches per step")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--precision", choices=[precision.value for precision in Precision], default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--loss", default="whole", help="of our model")
    parser.add_argument("--compile", action="store_true", help="all of them")
    parser.add_argument("--activation-checkpointing", choices=CHECKPOINTING, default="false", help="of our model")
    parser.add_argument("--threads", type=int, help="on the CPU; all cores by default")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="per turn")
    parser.add_argument("--peak-tflops", type=float, help="of the device; known for some GPUs")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args()
    if unknown := [name for name in options.contestants if name not in CONTESTANTS]:
        parser.error(f"--contestants: {', '.join(unknown)} is none of {', '.join(CONTESTANTS)}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    cluster = ClusterConfig(
        name="benchmark",
        micro_batch=options.micro_batch,
        zero_stage=options.zero_stage,
        precision=Precision(options.precision),
        attention=options.attention,
        loss=options.loss,
        compile=options.compile,
        activation_checkpointing=CHECKPOINTING[options.activation_checkpointing],
        threads=options.threads,
    )
    world, config = initialize(cluster), model_config(options)
    task = Task(config, cluster, options.accumulation, random_weights(config), world)
    shape = (options.accumulation, options.micro_batch, config.seq_len + 1)
    batches = list(torch.randint(config.vocab_size, shape, device=device()))
    left_out = {name: why for name in options.contestants if (why := CONTESTANTS[name].obstacle())}
    steps: dict[str, Step] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in options.contestants:
        if name not in left_out:
            steps[name], found[name] = begun(CONTESTANTS[name].build, task, batches)
    seconds = take_turns(
        {name: partial(repeat, step, batches, options.steps) for name, step in steps.items()}, options.turns
    )
    parts = asdict(recorded(partial(steps["zero"], batches))) if "zero" in steps else None
    finalize()
    per_step = {name: statistics.median(turns) / options.steps for name, turns in seconds.items()}
    for name, each in found.items():
        each |= speeds(task, per_step[name], options.peak_tflops or peak_tflops())
    pairs = [(one, other) for one in steps for other in steps if one != other]
    return {
        **machine(),
        "preset": options.preset,
        "parameters": num_parameters(config),
        "tokens_per_step": options.accumulation * options.micro_batch * config.seq_len,
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "contestants": found,
        "ratios": {f"{one}/{other}": ratio(seconds, one, other) for one, other in pairs},
        "left_out": left_out,
        "zero_parts": parts,
    }


def begun(build: Callable[[Task], Step], task: Task, batches: list[torch.Tensor]) -> tuple[Step, dict[str, Any]]:
    """A contestant that has taken two steps, and what they told."""
    before = gib_allocated()
    step = build(task)
    losses: list[torch.Tensor] = []
    first_seconds = timed(lambda: losses.append(step(batches)))
    held = gib_allocated() - before
    peak = peak_gib(partial(step, batches))
    return step, {
        "first_loss": float(losses[0]),
        "first_step_seconds": first_seconds,
        "peak_memory_gib": None if peak is None else held + peak,
    }


def repeat(step: Step, batches: list[torch.Tensor], count: int) -> None:
    for _ in range(count):
        step(batches)


def speeds(task: Task, seconds: float, peak: float | None) -> dict[str, Any]:
    """Of a step: tokens per second, and the share of the GPU's peak by both conventions of planning/flops.py."""
    config = task.model
    rate = task.accumulation * task.cluster.micro_batch * config.seq_len / seconds
    shares = {
        name: None if peak is None else rate * flops_per_token(config, causal) / (peak * 1e12)
        for name, causal in (("mfu", False), ("mfu_causal", True))
    }
    return {"tokens_per_second": rate, **shares}


def table(result: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    lines = [
        f"{result['preset']}, {result['parameters'] / 1e6:,.0f}M parameters, {result['tokens_per_step']:,} tokens",
        f"{result['device']}; torch {result['torch']}; {settings}\n",
    ]
    headings = ["", "tokens/s", "zero is", "bare is", "MFU", "causal", "peak GiB", "first loss", "first step, s"]
    rows = [
        [
            name, float(each["tokens_per_second"]), result["ratios"].get(f"zero/{name}"),
            result["ratios"].get(f"bare/{name}"), each["mfu"], each["mfu_causal"], each["peak_memory_gib"],
            f"{each['first_loss']:.6f}", each["first_step_seconds"],
        ]
        for name, each in result["contestants"].items()
    ]  # fmt: skip
    lines.append(columns(headings, rows))
    lines += [f"{name} was left out: {why}" for name, why in result["left_out"].items()]
    if result["zero_parts"] is not None:
        lines.append("\n" + parts_table(result["zero_parts"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
