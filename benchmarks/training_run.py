"""The real command on made-up shards: tokens per second, what waits for data, the time to the first step.

    python benchmarks/training_run.py [--preset nano] [--steps 24] [--json] [SETTING=VALUE ...]
    python benchmarks/training_run.py --preset 1b --micro-batch 8 cluster.gpu_peak_tflops=989

`python -m tinyllama.train ... profile=true` in a process of its own, as a person starts it, with a model of conf/ and
what conf/ chooses for this machine. Rates are by the clock, over the steps after those that are recorded. Batches are
small, so that dozens of steps pass in a minute. When there have been enough the run is ended: what a checkpoint takes
is measured by checkpoint.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.measuring import columns, machine, parts_table, show
from tests.data.versions import write_version
from tinyllama.training.profile import SKIPPED, STEPS

ROOT = Path(__file__).parents[1]
CORPUS = "slimpajama"
MODELS = {
    "nano": (["+scale=demo"], "demo", 128, 4096),
    "120m": (["model=120m"], "llama2", 2048, 32000),
    "1b": ([], "llama2", 2048, 32000),
}
"""What chooses it, the tokenizer that its shards are named after, its sequence length and vocabulary."""
BEFORE = SKIPPED + STEPS + 1
"""Steps that do not count: those that warm up, those that are recorded, and the one that they are written in."""
NEVER = ["checkpoint.every_tokens=1e15", "validation.every_tokens=1e15", "tracking=none"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=MODELS, default="nano")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches per step")
    parser.add_argument("--steps", type=int, default=2 * BEFORE, help=f"in all; the first {BEFORE} do not count")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE")
    options = parser.parse_intermixed_args()
    if options.steps <= BEFORE + 1:
        parser.error(f"--steps={options.steps} must be more than {BEFORE + 1}: the first {BEFORE} do not count")
    return options


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    show(result, table, options.json)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    chosen, tokenizer, seq_len, vocab_size = MODELS[options.preset]
    batch = options.micro_batch * options.accumulation
    samples = np.random.default_rng(0).integers(0, vocab_size, (options.steps * batch, seq_len + 1), dtype=np.uint16)
    splits = {"train": samples, "validation": samples[: options.micro_batch]}
    write_version(folder / "data", tokenizer, CORPUS, splits, shard_bytes=1 << 26)
    command = [
        sys.executable, "-m", "tinyllama.train", *chosen, "stage=basic", *NEVER, "profile=true",
        f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}",
        "cluster.processes=1",
        f"cluster.micro_batch={options.micro_batch}", f"stages.basic.batch_tokens={batch * seq_len}",
        f"stages.basic.tokens={(options.steps + 2) * batch * seq_len}", *options.settings,
    ]  # fmt: skip
    began = time.time()
    with (folder / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=err, stderr=err, env=os.environ | {"TMPDIR": str(folder)})
        try:
            steps = followed(process, folder / "runs", options.steps)
        finally:
            process.kill()
            process.wait()
    said = (folder / "err").read_text()
    if len(steps) < options.steps:
        raise SystemExit(f"the run ended after {len(steps)} of {options.steps} steps:\n{said[-4000:]}")
    (profile,) = (folder / "runs").glob("*/*/profile/profile.json")
    counted, seconds = steps[BEFORE:], steps[-1]["time"] - steps[BEFORE]["time"]
    waited = sum(step["data_wait"] for step in counted[1:])
    return {
        **machine(),
        "preset": options.preset,
        "micro_batch": options.micro_batch,
        "accumulation": options.accumulation,
        "settings": options.settings,
        "steps": len(counted) - 1,
        "tokens_per_second": (steps[-1]["tokens"] - steps[BEFORE]["tokens"]) / seconds,
        "mfu": _mean([step["mfu"] for step in counted[1:]]),
        "data_wait_share": waited / seconds,
        "seconds_to_first_step": steps[0]["time"] - began,
        "profile": json.loads(profile.read_text()),
        "said": [line for line in said.splitlines() if line.startswith(("attention", "loss", "compil", "warning"))],
    }


def followed(process: subprocess.Popen, runs: Path, count: int) -> list[dict[str, Any]]:
    """The journal, once it has so many steps or the process has ended."""
    while True:
        has_ended = process.poll() is not None
        lines = [line for path in runs.glob("*/*/metrics.jsonl") for line in path.read_text().splitlines(True)]
        lines = [line for line in lines if line.endswith("\n")]  # the last one may be half written
        if has_ended or len(lines) >= count:
            return [json.loads(line) for line in lines[:count]]
        time.sleep(0.1)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def table(result: Mapping[str, Any]) -> str:
    heading = (
        f"{result['preset']}, {result['accumulation']} micro-batches of {result['micro_batch']} a step; "
        f"{result['device']}; torch {result['torch']}"
    )
    row = [
        f"{result['steps']} steps", float(result["tokens_per_second"]), result["mfu"],
        100 * result["data_wait_share"], result["seconds_to_first_step"],
    ]  # fmt: skip
    figures = columns(["", "tokens/s", "MFU", "data wait, %", "first step after, s"], [row])
    return "\n\n".join([heading, figures, parts_table(result["profile"]), *result["said"]])


if __name__ == "__main__":
    main()


sys.path.insert(0, str(Path(__file__).parents[1]))
