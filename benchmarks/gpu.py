"""All figures of a GPU in one call of under eight minutes: one JSON and a Markdown table for RESULTS.md.

    python benchmarks/gpu.py --out FOLDER
    python benchmarks/gpu.py --out FOLDER --dry         a small model, to see that everything runs; no GPU needed
    python benchmarks/gpu.py --out FOLDER --only "fp8"  the parts whose names hold this, added to what FOLDER has

Each part is one of the commands beside this file, in a process of its own with time of its own, the most telling ones
first. A part that fails, or that finds no time left, is a row with the reason. Both files are written after every part.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LEAST_SECONDS = 10
"""With less left a part is not begun."""

Results = Mapping[str, Mapping[str, Any]]
"""By part: the command's JSON with `seconds`, or `failed`."""


@dataclass(frozen=True)
class Part:
    name: str
    command: Sequence[str]
    seconds: float
    """That it may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=7.8, help="for all parts together")
    parser.add_argument("--only", default="", help="parts whose names hold this")
    parser.add_argument("--dry", action="store_true", help="small sizes")
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of the table")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    parts = [part for part in (dry_parts() if options.dry else gpu_parts()) if options.only in part.name]
    results = known(options.out / "gpu.json") if options.only else {}
    for part in parts:
        left = deadline - time.monotonic()
        begins = left > LEAST_SECONDS
        results[part.name] = run(part, min(part.seconds, left)) if begins else {"failed": "no time was left for it"}
        (options.out / "gpu.json").write_text(json.dumps(results, indent=1))
        (options.out / "gpu.md").write_text(markdown(results))
        ended = results[part.name].get("failed") or f"{results[part.name]['seconds']:.0f} s"
        print(f"{part.name}: {ended}", file=sys.stderr, flush=True)
    print(json.dumps(results) if options.json else markdown(results))


def gpu_parts() -> list[Part]:
    """Sizes for a GPU of 80 GB or more; in the order of what one would miss most."""

    def step(name: str, contestants: str, micro_batch: int, seconds: float, *more: str) -> Part:
        sizes = ["--micro-batch", str(micro_batch), "--accumulation", "2", "--turns", "5", "--steps", "1"]
        return Part(name, ["train_step.py", "--preset", "1b", "--contestants", contestants, *sizes, *more], seconds)

    sizes, peak = ["--preset", "1b", "--micro-batch", "8"], "cluster.gpu_peak_tflops=989"
    compiled, fp8 = ["--compile"], ["--compile", "--precision", "fp8"]
    return [
        Part("attention kernels", ["model_parts.py", "--part", "attention", *sizes], 40),
        Part("losses", ["model_parts.py", "--part", "loss", *sizes], 40),
        step("compiled, micro-batch 8", "zero,bare", 8, 150, *compiled),
        Part("tinyllama.train", ["training_run.py", *sizes, "--steps", "32", peak], 120),
        step("compiled, fp8, micro-batch 8", "zero", 8, 110, *fp8),
        step("compiled, micro-batch 16", "zero", 16, 90, *compiled),
        step("eager, micro-batch 8", "zero,bare", 8, 60),
        step("compiled, beside transformers, micro-batch 8", "zero,transformers", 8, 100, *compiled),
        step("eager, beside transformers, micro-batch 4", "zero,transformers", 4, 60),
        step("eager, micro-batch 16", "zero", 16, 50),
        step("compiled, micro-batch 32", "zero", 32, 100, *compiled),
        step("eager, micro-batch 32", "zero", 32, 50),
        step(
            "compiled, selective, micro-batch 32", "zero", 32, 100, *compiled, "--activation-checkpointing", "selective"
        ),
        step("compiled, fp8, micro-batch 16", "zero", 16, 110, *fp8),
        step("compiled, micro-batch 4", "zero", 4, 90, *compiled),
    ]


def dry_parts() -> list[Part]:
    """The same commands as small as they go, and one that fails."""
    sizes = ["--preset", "tiny", "--micro-batch", "2"]
    return [
        Part("attention kernels and losses", ["model_parts.py", *sizes, "--turns", "2"], 60),
        Part("eager, micro-batch 2", ["train_step.py", *sizes, "--turns", "2", "--steps", "1"], 120),
        Part("of no such size", ["train_step.py", "--preset", "none"], 60),
        Part("tinyllama.train", ["training_run.py", "--micro-batch", "1", "--steps", "15"], 120),
    ]


def run(part: Part, seconds: float) -> dict[str, Any]:
    """What a part measured; killed with all that it has started when its time is over."""
    script, *arguments = part.command
    command = [sys.executable, str(HERE / script), *arguments, "--json"]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"failed": f"it took more than {seconds:.0f} s"}
    try:
        document = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        return {
            "failed": " ".join((err.strip().splitlines() or ["it printed nothing"])[-1].split())[:200],
            "said": err[-4000:],
        }
    return {**document, "seconds": time.monotonic() - began}


def known(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier call has measured."""
    return json.loads(path.read_text()) if path.is_file() else {}


# ---------------------------------------------------------------- Markdown


def markdown(results: Results) -> str:
    done = {name: result for name, result in results.items() if "failed" not in result}
    blocks = [
        _heading(done),
        _attention(done),
        _losses(done),
        _steps(done),
        _runs(done),
        _where(done),
        _failed(results),
    ]
    return "\n".join(block for block in blocks if block)


def _heading(done: Results) -> str:
    for result in done.values():
        return f"## {result['device']}; torch {result['torch']}, Python {result['python']}\n"
    return ""


def _attention(done: Results) -> str:
    rows = [
        [name, each["ms"], each["over_sdpa"], each["why_not"]]
        for result in done.values() for name, each in result.get("attention", {}).items()
    ]  # fmt: skip
    return _block("Attention, forward and backward", ["kernel", "ms", "times as fast as sdpa", ""], rows)


def _losses(done: Results) -> str:
    rows = [
        [name, each["ms"], each["over_whole"], each["peak_gib"], each["why_not"]]
        for result in done.values() for name, each in result.get("loss", {}).items()
    ]  # fmt: skip
    return _block("Loss, forward and backward", ["loss", "ms", "times as fast as whole", "peak GiB", ""], rows)


def _steps(done: Results) -> str:
    rows = [
        [
            part, name, each["tokens_per_second"], _percent(each["mfu"]), _percent(each["mfu_causal"]),
            each["peak_memory_gib"], each["first_step_seconds"], result["ratios"].get(f"zero/{name}"),
            f"{each['first_loss']:.5f}",
        ]
        for part, result in done.items() for name, each in result.get("contestants", {}).items()
    ]  # fmt: skip
    headings = [
        "a step",
        "",
        "tokens/s",
        "MFU",
        "causal",
        "peak GiB",
        "first step, s",
        "zero is, times as fast",
        "first loss",
    ]
    return _block("Training steps", headings, rows)


def _runs(done: Results) -> str:
    rows = [
        [
            part, result["micro_batch"], result["tokens_per_second"], _percent(result["mfu"]),
            _percent(result["data_wait_share"]), result["seconds_to_first_step"], "; ".join(result["said"]) or None,
        ]
        for part, result in done.items() if "data_wait_share" in result
    ]  # fmt: skip
    headings = ["the command", "micro-batch", "tokens/s", "MFU", "data wait", "first step after, s", ""]
    return _block("The real command", headings, rows)


def _where(done: Results) -> str:
    recorded = {part: result.get("profile") or result.get("zero_parts") for part, result in done.items()}
    blocks = [
        _block(f"Where a step goes: {part}", ["part", "host, ms", "of the step", "device, ms"], [
            [each["name"].replace("_", " "), 1e3 * each["host_seconds"], _percent(each["share"]),
             None if each["device_seconds"] is None else 1e3 * each["device_seconds"]]
            for each in breakdown["parts"] if each["host_seconds"] > 0
        ])
        for part, breakdown in recorded.items() if breakdown
    ]  # fmt: skip
    return "\n".join(blocks)


def _failed(results: Results) -> str:
    rows = [[name, result["failed"]] for name, result in results.items() if "failed" in result]
    return _block("Not measured", ["part", "why"], rows)


def _block(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [headings, ["---"] * len(headings), *([_text(cell) for cell in row] for row in rows)]
    return f"### {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell).replace("|", "/")


if __name__ == "__main__":
    main()
