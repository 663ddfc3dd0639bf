"""How soon each command is there, what it loads, and the time to a run's first step with and without a warm cache.

    python benchmarks/startup.py [--turns 5] [--json]
    python benchmarks/startup.py --first-step [--preset nano] [--json] [SETTING=VALUE ...]

Each command is started as a person starts it, with --help and with --cfg job, `plan` with a real tree as well; the
median over turns, beside a Python that does nothing. It fails when a command that needs no torch loads it. The first
step is that of training_run.py, on this machine's device, from the command on: once with nothing compiled before, and
once more with what the first run has left on the disk.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import columns, machine, show

ROOT = Path(__file__).parents[1]
TREE = ["+scale=demo", "+variant=standard", "stage=basic"]
COMMANDS = (
    "cancel",
    "drill",
    "evaluate",
    "export",
    "generate",
    "plan",
    "prepare",
    "report",
    "sample",
    "train",
    "verify",
)
NEED_TORCH = {"evaluate", "export", "generate", "train"}
"""They compute by it."""
NEEDLESS = {"torch", "deepspeed", "mlflow"}
"""For all others."""
HEAVY = ("torch", "deepspeed", "mlflow", "streaming", "transformers", "lm_eval", "matplotlib", "pyarrow")

LOADED = """
import atexit, runpy, sys
atexit.register(lambda: print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr))
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def main() -> None:
    options = parse()
    if options.first_step:
        show(first_steps(options), first_steps_table, options.json)
        return
    result = commands(options.turns)
    show(result, commands_table, options.json)
    wrong = [each["command"] for each in result["commands"] if not each["loads_what_it_may"]]
    if wrong:
        raise SystemExit(f"they load what they do not need: {', '.join(wrong)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--first-step", action="store_true", help="of a run, instead of the commands")
    parser.add_argument("--preset", default="nano", help="of training_run.py")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE")
    return parser.parse_intermixed_args()


# ---------------------------------------------------------------- commands


def commands(turns: int) -> dict[str, Any]:
    calls = {f"{name} {ask}": [name, *TREE, *ask.split()] for name in COMMANDS for ask in ("--help", "--cfg job")}
    calls["plan"] = ["plan", *TREE]
    seconds: dict[str, list[float]] = {"python": [], **{call: [] for call in calls}}
    for _ in range(turns):
        seconds["python"].append(_seconds([sys.executable, "-c", ""]))
        for call, (name, *arguments) in calls.items():
            seconds[call].append(_seconds([sys.executable, "-m", f"tinyllama.{name}", *arguments]))
    found = []
    for call, (name, *arguments) in calls.items():
        loads = _loads(name, arguments)
        found.append(
            {
                "command": call,
                "seconds": statistics.median(seconds[call]),
                "over_python": _over(seconds, call),
                "loads": loads,
                "loads_what_it_may": name in NEED_TORCH or not NEEDLESS & set(loads),
            }
        )
    return {**machine(), "python_seconds": statistics.median(seconds["python"]), "commands": found}


def _over(seconds: Mapping[str, Sequence[float]], call: str) -> float:
    """How many times as long as a Python that does nothing, the median over pairs of a turn."""
    return statistics.median(ours / bare for ours, bare in zip(seconds[call], seconds["python"], strict=True))


def _seconds(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    _run(command)
    return time.perf_counter() - begin


def _loads(name: str, arguments: Sequence[str]) -> list[str]:
    """The heavy modules that the command has loaded by its end."""
    said = _run([sys.executable, "-c", LOADED, f"tinyllama.{name}", *arguments])
    (line,) = (line for line in said.splitlines() if line.startswith("loaded:"))
    return [module for module in HEAVY if module in line.split()]


def _run(command: Sequence[str]) -> str:
    """What it says on standard error."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stderr


def commands_table(result: Mapping[str, Any]) -> str:
    rows = [
        [each["command"], each["seconds"], each["over_python"], " ".join(each["loads"])] for each in result["commands"]
    ]
    rows.insert(0, ["python", result["python_seconds"], 1.0, ""])
    return columns(["", "seconds", "times python", "loads"], rows)


# ---------------------------------------------------------------- the first step


def first_steps(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        cold, warm = (_first_step(options, environment) for _ in range(2))
    return {
        **machine(),
        "preset": options.preset,
        "settings": options.settings,
        "cold_seconds": cold["seconds_to_first_step"],
        "warm_seconds": warm["seconds_to_first_step"],
        "said": cold["said"],
    }


def _first_step(options: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / "training_run.py"), "--preset", options.preset, "--json"]
    done = subprocess.run([*command, *options.settings], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"training_run.py ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout)


def first_steps_table(result: Mapping[str, Any]) -> str:
    heading = "; ".join([result["preset"], result["device"], f"torch {result['torch']}", *result["settings"]])
    rows = [["nothing compiled before", result["cold_seconds"]], ["once more", result["warm_seconds"]]]
    return "\n\n".join([heading, columns(["from the command to the first step", "seconds"], rows), *result["said"]])


if __name__ == "__main__":
    main()
