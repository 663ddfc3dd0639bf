"""What DeepSpeed's ZeRO stages cost: each beside a plain loop over the same model, on one rank and on several.

    python benchmarks/engine.py [--preset nano] [--ranks 1,2] [--json]

The plain loop is PyTorch's own: on several ranks DistributedDataParallel, which brings the gradients together once a
step. All have the same weights and tokens and take turns; the ratios are medians over pairs of a turn. The ranks of a
run are processes of this machine, each with a GPU where there are enough of them, else all on the CPU. Stage 0 is not
offered (engine/deepspeed_config.py says why).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed

from benchmarks.contestants import Task, bare, random_weights, zero
from benchmarks.measuring import Step, add_model_options, columns, machine, model_config, ratio, show, take_turns
from tinyllama.config.schema import ClusterConfig, Precision
from tinyllama.engine.deepspeed_config import ZERO_STAGES
from tinyllama.engine.startup import device, finalize, initialize, run_ranks
from tinyllama.planning.flops import num_parameters
from tinyllama.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, "nano")
    parser.add_argument("--ranks", default="1,2", help="how many, one measurement after the other")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences per rank and forward pass")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches per step")
    parser.add_argument("--precision", choices=[precision.value for precision in Precision], default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--compile", action="store_true", help="all of them")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="per turn")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result is not None:
        run_ranks(measure, (options,), int(options.ranks))
        return
    counts = [int(ranks) for ranks in options.ranks.split(",")]
    config = model_config(options)
    ranks = {str(count): elsewhere(count) for count in counts}
    result = {**machine(), "preset": options.preset, "parameters": num_parameters(config), "ranks": ranks}
    show(result, table, options.json)


def elsewhere(ranks: int) -> dict[str, Any]:
    """Measured in processes of its own, which start with nothing behind them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        command = [sys.executable, __file__, *sys.argv[1:], "--ranks", str(ranks), "--result", str(path)]
        gpus = torch.cuda.device_count()
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if 0 < gpus < ranks else {}
        subprocess.run(command, check=True, env={**os.environ, **hidden}, stdout=sys.stderr)
        return json.loads(path.read_text())


def measure(options: argparse.Namespace) -> None:
    """In every rank."""
    clusters = {
        stage: ClusterConfig(
            name="benchmark",
            micro_batch=options.micro_batch,
            zero_stage=stage,
            precision=Precision(options.precision),
            attention=options.attention,
            loss="whole",
            compile=options.compile,
        )
        for stage in ZERO_STAGES
    }
    world, config = initialize(clusters[1]), model_config(options)
    weights = random_weights(config)
    tasks = {stage: Task(config, cluster, options.accumulation, weights, world) for stage, cluster in clusters.items()}
    generator = torch.Generator(device()).manual_seed(world.rank)
    shape = (options.accumulation, options.micro_batch, config.seq_len + 1)
    batches = list(torch.randint(config.vocab_size, shape, device=device(), generator=generator))
    steps = {"bare": bare(tasks[1]), **{f"zero {stage}": zero(task) for stage, task in tasks.items()}}
    losses = {name: _mean(step(batches), world) for name, step in steps.items()}
    seconds = take_turns(
        {name: partial(_together, step, batches, options.steps) for name, step in steps.items()}, options.turns
    )
    tokens = world.size * options.accumulation * options.micro_batch * config.seq_len
    if world.is_main:
        result = {
            name: {
                "tokens_per_second": tokens * options.steps / statistics.median(turns),
                "over_bare": ratio(seconds, name, "bare"),
                "first_loss": losses[name],
            }
            for name, turns in seconds.items()
        }
        options.result.write_text(json.dumps(result))
    finalize()


def _together(step: Step, batches: list[torch.Tensor], count: int) -> None:
    """Until the slowest rank has taken its steps, too."""
    for _ in range(count):
        step(batches)
    torch.distributed.barrier()


def _mean(loss: torch.Tensor, world: World) -> float:
    torch.distributed.all_reduce(loss)
    return float(loss) / world.size


def table(result: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{ranks} rank{'s' if ranks != '1' else ''}, {name}",
            float(each["tokens_per_second"]),
            each["over_bare"],
            f"{each['first_loss']:.6f}",
        ]
        for ranks, found in result["ranks"].items()
        for name, each in found.items()
    ]
    size = f"{result['preset']}, {result['parameters'] / 1e6:,.0f}M parameters"
    heading = f"{size}; {result['device']}; torch {result['torch']}"
    return f"{heading}\n\n{columns(['', 'tokens/s', 'over bare', 'first loss'], rows)}"


if __name__ == "__main__":
    main()


sys.path.insert(0, str(Path(__file__).parents[1]))
