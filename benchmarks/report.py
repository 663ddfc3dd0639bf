"""How long the report of a large family takes, and how large its page is.

    python benchmarks/report.py [--steps 200000] [--folder WHERE] [--json]

A family of seven runs, three stages of three variants, with made-up journals that have every field of real ones.
Writing them takes some minutes and about 80 MB of disk for each 200,000 steps; it is not measured.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

sys.path.insert(0, str(Path(__file__).parents[1]))

from hydra import initialize_config_dir

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.app import compose_path, prepare_hydra
from tinyllama.config.location import conf_folder
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.plan import RunPlan, make_plan
from tinyllama.planning.tree import Job, Node, grow
from tinyllama.training.description import write_plan

ROOT = Path(__file__).parents[1]
NAMES = ("slimpajama", "starcoder", "proof_pile_2", "skypile")
PREPARED = Inventory({name: Corpus(name, f"of {name}", (2**20,) * 1000) for name in NAMES}, "of the tokenizer")
BATCH_TOKENS = 2**21


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000, help="of each run")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to be used; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = Path(folder) / "runs"
        nodes = grow(plan_family(runs, options.steps))
        for node in nodes:
            write_run(runs, node)
        result = measure(runs, len(nodes), options.steps, options.turns)
    print(json.dumps(result) if options.json else table(result))


def plan_family(runs: Path, steps: int) -> Iterator[Job]:
    prepare_hydra()
    tokens = steps * BATCH_TOKENS
    sizes = [f"paths.runs={runs}", f"schedule.horizon_tokens={3 * tokens}"]
    sizes.append(f"++stages.continual.ramp_tokens={tokens // 10}")
    sizes += [f"++stages.{stage}.{name}={value}" for stage in ("basic", "continual", "cooldown")
             for name, value in (("tokens", tokens), ("batch_tokens", BATCH_TOKENS))]  # fmt: skip
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        for variant in ("standard", "math_code", "chinese"):
            for stage in ("basic", "continual", "cooldown"):
                asked = (f"+variant={variant}", f"stage={stage}", *sizes)
                path = compose_path(asked)
                yield Job(asked, path, make_plan(path, PREPARED))


def write_run(runs: Path, node: Node) -> None:
    plan, folder = node.plan, RunFolder.of(runs, node.plan)
    folder.path.mkdir(parents=True)
    write_plan(node.config, plan, node.variants, Status.done)
    folder.identity.write_text(json.dumps({"digest": plan.digest, "meaning": plan.meaning}))
    with folder.metrics.open("w") as file:
        file.writelines(json.dumps(step, separators=(",", ":")) + "\n" for step in made_up_steps(plan))
    folder.done.write_text("{}\n")


def made_up_steps(plan: RunPlan) -> Iterator[dict]:
    dice = random.Random(plan.digest)
    for step in range(1, plan.steps + 1):
        tokens = plan.start_tokens + step * plan.batch_tokens
        weights = plan.weights_at(step * plan.batch_samples)
        read = {name: round(weight * plan.batch_samples) for name, weight in weights.items()}
        loss = 2 + 4 / (1 + tokens / 1e10) + dice.gauss(0, 0.02)
        line = {
            "step": step, "tokens": tokens, "time": round(1.79e9 + tokens / 2.2e6, 3), "loss": loss,
            "learning_rate": plan.schedule(tokens), "grad_norm": dice.lognormvariate(-1, 0.1),
            "tokens_per_second": round(dice.gauss(2.2e6, 2e4), 1), "data_wait": round(dice.expovariate(1000), 4),
            "mfu": dice.gauss(0.5, 0.01), "corpus_losses": {name: loss + dice.gauss(0, 0.1) for name in read},
            "corpus_samples": read,
        }  # fmt: skip
        if step % 5000 == 77:
            line["skipped"] = "loss 9.81 is 12.1 deviations above its usual 2.3"
        if step % 1000 == 0:
            line["validation"] = {name: loss + dice.gauss(0, 0.01) for name in NAMES}
        yield line


def measure(runs: Path, count: int, steps: int, turns: int) -> dict[str, float]:
    """The real command, Python's start and all; the quickest of some turns, for other work slows them."""
    command = [sys.executable, "-m", "tinyllama.report", f"paths.runs={runs}", "tracking=none"]
    seconds = []
    before = getrusage(RUSAGE_CHILDREN)
    for _ in range(turns):
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    used = getrusage(RUSAGE_CHILDREN)
    cpu_seconds = (used.ru_utime - before.ru_utime + used.ru_stime - before.ru_stime) / turns
    (report,) = runs.glob("*/report.html")
    journals = sum(path.stat().st_size for path in runs.glob("*/*/metrics.jsonl"))
    return {
        "runs": count, "steps": steps, "journal_mb": journals / 1e6, "seconds": min(seconds),
        "cpu_seconds": cpu_seconds, "peak_mib": used.ru_maxrss / 1024, "page_mb": report.stat().st_size / 1e6,
    }  # fmt: skip


def table(result: dict[str, float]) -> str:
    return (
        f"{result['runs']} runs of {result['steps']:,} steps, {result['journal_mb']:,.0f} MB of journals: "
        f"{result['seconds']:.1f} s ({result['cpu_seconds']:.1f} s of CPU), {result['peak_mib']:,.0f} MiB, "
        f"page of {result['page_mb']:.2f} MB"
    )


if __name__ == "__main__":
    main()
