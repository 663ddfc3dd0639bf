"""Attention kernels, losses and what is between a block's matrices, each by itself at a model's own sizes, forward and
backward.

    python benchmarks/model_parts.py --preset 1b --micro-batch 8 [--part loss] [--json]

Kernels are timed as `cluster.attention=auto` times them, medians of some passes. Losses go from the last hidden states
to the mean of a micro-batch, with the gradients of the hidden states and of the head's weight; they take turns. So do
norm, rotary positions and SwiGLU as training computes them and by PyTorch's derivative of their formulas. What cannot
run here is a row with the reason.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from benchmarks.measuring import add_model_options, columns, machine, model_config, peak_gib, ratio, show, take_turns
from tinyllama.config.schema import ModelConfig
from tinyllama.engine.startup import device
from tinyllama.model import elementwise
from tinyllama.model.attention import ATTENTIONS, available
from tinyllama.model.attention_choice import REFERENCE, Shape, Trial, compare
from tinyllama.model.layers import rotary_tables
from tinyllama.model.loss import LOSSES, Loss

PARTS = ("attention", "loss", "elementwise")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, "nano")
    parser.add_argument("--part", choices=PARTS, help="one of them alone")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser.parse_args()


def main() -> None:
    options = parse()
    config = model_config(options)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "attention": partial(attention, config, options.micro_batch),
        "loss": partial(loss, config, options.micro_batch, options.turns),
        "elementwise": partial(between_matrices, config, options.micro_batch, options.turns),
    }
    result = {**machine(), "preset": options.preset, "micro_batch": options.micro_batch}
    result |= {part: measure() for part, measure in measures.items() if options.part in (None, part)}
    show(result, table, options.json)


def precision() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def attention(config: ModelConfig, micro_batch: int) -> dict[str, Any]:
    """By kernel: milliseconds, and how many times as fast as sdpa it is."""
    dtype, shape = precision(), Shape.of(config, micro_batch)
    obstacles = {name: available(name, device(), dtype == torch.bfloat16) for name in ATTENTIONS}
    able = {name: ATTENTIONS[name].run for name, obstacle in obstacles.items() if obstacle is None}
    trials = {name: Trial(None, why) for name, why in obstacles.items() if why is not None}
    trials |= compare(able, shape, dtype, device())
    reference = trials[REFERENCE].seconds
    return {
        name: {
            "ms": None if trials[name].seconds is None else trials[name].seconds * 1e3,
            "over_sdpa": None if None in (reference, trials[name].seconds) else reference / trials[name].seconds,
            "why_not": trials[name].remark or None,
        }
        for name in ATTENTIONS
    }


def loss(config: ModelConfig, micro_batch: int, turns: int) -> dict[str, Any]:
    """By loss: milliseconds, and what it holds at most beyond hidden states, weight and their gradients."""
    torch.manual_seed(0)
    dtype, here = precision(), device()
    tokens = micro_batch * config.seq_len
    hidden = torch.randn(tokens, config.hidden_size, device=here, dtype=dtype, requires_grad=True)
    head = torch.randn(config.vocab_size, config.hidden_size, device=here, dtype=dtype).mul_(0.02).requires_grad_()
    targets = torch.randint(config.vocab_size, (tokens,), device=here)
    found: dict[str, dict[str, Any]] = {}
    works: dict[str, Callable[[], object]] = {}
    ways = {name: (way.run, way.obstacle(here)) for name, way in LOSSES.items()}
    if here.type == "cuda":  # as training has it
        ways["whole, compiled"] = (torch.compile(LOSSES["whole"].run, dynamic=False), None)
    for name, (run, why) in ways.items():
        try:
            if why is None:
                work = partial(pass_through, run, hidden, head, targets)
                work()
                found[name] = {"peak_gib": peak_gib(work), "why_not": None}
                works[name] = work
        except Exception as error:  # of any kind: they come from compilers and other people's packages
            why = f"it failed: {' '.join(str(error).split())[:100]}"
        if why is not None:
            found[name] = {"peak_gib": None, "why_not": why}
    seconds = take_turns(works, turns)
    for name, turns_of in seconds.items():
        found[name] |= {"ms": statistics.median(turns_of) * 1e3, "over_whole": ratio(seconds, name, "whole")}
    return {name: {"ms": None, "over_whole": None} | each for name, each in found.items()}


def pass_through(run: Loss, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(run(hidden, head, targets).mean(), (hidden, head))


def between_matrices(config: ModelConfig, micro_batch: int, turns: int) -> dict[str, Any]:
    """By function: milliseconds of one call forward and backward, and those over the formula's."""
    dtype, here = precision(), device()
    if here.type != "cpu":
        why = "on GPUs it is the formula, which the compiler fuses"
        return {name: {"ms": None, "over_formula": None, "why_not": why} for name in ("rms_norm", "rotary", "swiglu")}
    torch.manual_seed(0)
    heads = config.num_heads + 2 * config.num_kv_heads
    cosines, sines = (table.to(here, dtype) for table in rotary_tables(config))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=here, dtype=dtype, requires_grad=True)

    tokens = micro_batch, config.seq_len
    calls: dict[str, tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]] = {
        "rms_norm": (
            lambda x, weight: (elementwise.rms_norm(x, weight, config.norm_eps),),
            [random(*tokens, config.hidden_size), random(config.hidden_size)],
        ),
        "rotary": (
            lambda qkv: elementwise.rotary(qkv, cosines, sines, config.num_kv_heads),
            [random(*tokens, heads, config.head_size)],
        ),
        "swiglu": (
            lambda gate_up: (elementwise.swiglu(gate_up),),
            [random(*tokens, 2 * config.intermediate_size)],
        ),
    }
    found = {}
    for name, (call, inputs) in calls.items():
        work = partial(there_and_back, call, inputs, [torch.randn_like(result) for result in call(*inputs)])
        seconds = take_turns({"ours": work, "formula": partial(by_formula, work)}, turns)
        found[name] = {
            "ms": statistics.median(seconds["ours"]) * 1e3,
            "over_formula": ratio(seconds, "ours", "formula"),
            "why_not": None,
        }
    return found


def there_and_back(
    call: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], gradients: list[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(call(*inputs), inputs, gradients)


def by_formula(work: Callable[[], object]) -> object:
    with mock.patch.object(elementwise, "_by_hand", return_value=False):
        return work()


def table(result: Mapping[str, Any]) -> str:
    lines = [f"{result['preset']}, micro-batch {result['micro_batch']}; {result['device']}; torch {result['torch']}"]
    if "attention" in result:
        rows = [[name, each["ms"], each["over_sdpa"]] for name, each in result["attention"].items()]
        lines += ["", columns(["attention", "ms", "sdpa is 1"], rows)]
    if "loss" in result:
        rows = [[name, each["ms"], each["over_whole"], each["peak_gib"]] for name, each in result["loss"].items()]
        lines += ["", columns(["loss", "ms", "whole is 1", "peak GiB"], rows)]
    if "elementwise" in result:
        rows = [[name, each["ms"], each["over_formula"]] for name, each in result["elementwise"].items()]
        lines += ["", columns(["between matrices", "ms", "formula is 1"], rows)]
    for part in PARTS:
        lines += [f"{name}: {each['why_not']}" for name, each in result.get(part, {}).items() if each["why_not"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
