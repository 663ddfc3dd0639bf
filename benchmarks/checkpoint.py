"""How long training stands still for a checkpoint, and what one costs on disk.

    python benchmarks/checkpoint.py [--processes 2] [--folder WHERE] [--json]

Behind training is compared with in line: the same store, waited for at once. The two take turns. Behind training
the next checkpoint is due when some steps have been taken, as in a run, and the one before it is waited for if need be.
Writing is compared with a plain copy of the same files, forced to the disk.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.store import CheckpointStore
from tinyllama.config.schema import ClusterConfig, ModelConfig, OptimizerConfig
from tinyllama.engine.startup import device, finalize, initialize, run_ranks
from tinyllama.engine.zero import ZeroEngine
from tinyllama.model.llama import build_model
from tinyllama.planning.flops import num_parameters
from tinyllama.planning.progress import Progress

MODEL = ModelConfig(
    name="benchmark", vocab_size=8192, hidden_size=384, intermediate_size=1024, num_layers=8, num_heads=6,
    num_kv_heads=2, seq_len=128,
)  # fmt: skip
OPTIMIZER = OptimizerConfig(learning_rate=4e-4, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="between two checkpoints")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run_ranks(measure, (options, Path(folder)), options.processes)
        result = json.loads(Path(folder, "result.json").read_text())
    print(json.dumps(result) if options.json else table(result))


def measure(options: argparse.Namespace, folder: Path) -> None:
    cluster = ClusterConfig(name="benchmark", micro_batch=2)
    world = initialize(cluster)
    model = build_model(MODEL, cluster.attention, device())
    model.initialize(seed=0)
    engine = ZeroEngine(model, OPTIMIZER, cluster, 1, world)
    batch = [torch.randint(MODEL.vocab_size, (cluster.micro_batch, MODEL.seq_len + 1), device=device())]
    run = RunFolder(folder / "run")
    store = CheckpointStore(run, "benchmark", world, keep=1)
    positions = iter(range(1, 10**6))

    def write() -> None:
        count = next(positions)
        store.write(Progress(count, count, count), "", engine.snapshot)

    def train() -> None:
        for _ in range(options.steps):
            engine.step(batch, OPTIMIZER.learning_rate)

    def in_line() -> None:
        write()
        assert store.wait() is None

    train(), in_line()  # memory is found, files are made
    seconds: dict[str, list[float]] = {"undisturbed": [], "in_line": [], "behind": [], "disturbed": [], "copy": []}
    for _ in range(options.turns):
        seconds["undisturbed"].append(timed(train))
        seconds["in_line"].append(timed(in_line))
        write()  # there is one in flight, or just landed, when the next is due
        train()
        seconds["behind"].append(timed(write))
        seconds["disturbed"].append(timed(train))
        assert store.wait() is None
        newest = run.checkpoint(run.checkpoint_tokens()[-1])
        if world.is_main:
            seconds["copy"].append(timed(lambda: copy(newest, folder / "copy")))  # noqa: B023
    store.close()
    if world.is_main:
        size = sum(path.stat().st_size for path in newest.iterdir())
        (folder / "result.json").write_text(json.dumps(report(seconds, size, world.size)))
    finalize()


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in source.iterdir():
        with path.open("rb") as original, (target / path.name).open("wb") as file:
            shutil.copyfileobj(original, file, 2**24)
            file.flush()
            os.fsync(file.fileno())


def report(seconds: dict[str, list[float]], size: int, ranks: int) -> dict[str, float]:
    """Medians; ratios over pairs of a turn, so that what disturbed both cancels."""
    median = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(one: str, other: str) -> float:
        return statistics.median(mine / theirs for mine, theirs in zip(seconds[one], seconds[other], strict=True))

    return {
        "ranks": ranks,
        "parameters": num_parameters(MODEL),
        "bytes_per_parameter": size / num_parameters(MODEL),
        "stands_still_in_line_seconds": median["in_line"],
        "stands_still_behind_seconds": median["behind"],
        "behind_over_in_line": ratio("behind", "in_line"),
        "steps_while_writing_over_undisturbed": ratio("disturbed", "undisturbed"),
        "mib_per_second": size / median["in_line"] / 2**20,
        "mib_per_second_of_a_copy": size / median["copy"] / 2**20,
        "rate_over_copy": ratio("copy", "in_line"),
    }


def table(result: dict[str, float]) -> str:
    return "\n".join(f"{name:<40}{value:>14,.4g}" for name, value in result.items())


if __name__ == "__main__":
    main()
