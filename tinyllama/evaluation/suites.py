"""Which tasks are asked of a model, by which metric and with how many examples: the original's choices."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

HELD_OUT, PERPLEXITY = "held_out", "perplexity"
"""Made of the corpora's validation split: questions (held_out.py), and the loss itself (perplexity.py)."""

PREFERRED = ("acc_norm", "acc", "exact_match", "em", "f1", "pass@1")
"""Of a task that is in no suite, the first of these that it has; else the first of all that it has."""

PERCENT = frozenset(PREFERRED)
"""Shares, which are told in percent, as published ones are."""


@dataclass(frozen=True)
class Benchmark:
    """A task, or a group of tasks, of lm-eval."""

    task: str
    """lm-eval's name."""
    metric: str | None = None
    """lm-eval's name; None: what PREFERRED says."""
    shots: int | None = None
    """Examples in the prompt; None leaves it to the task."""


def _zero_shot(metrics: Mapping[str, str]) -> tuple[Benchmark, ...]:
    return tuple(Benchmark(task, metric, 0) for task, metric in metrics.items())


SUITES: dict[str, tuple[Benchmark, ...]] = {
    "commonsense": _zero_shot(
        {
            "hellaswag": "acc_norm",
            "openbookqa": "acc_norm",
            "winogrande": "acc",
            "arc_challenge": "acc_norm",
            "arc_easy": "acc_norm",
            "boolq": "acc",
            "piqa": "acc_norm",
        }
    ),
    "problem_solving": (
        Benchmark("mmlu", "acc", 5),
        Benchmark("bbh_fewshot", "exact_match", 3),
        Benchmark("humaneval", "pass@1", 0),
        Benchmark("drop", "em", 3),
    ),
    "chinese": _zero_shot(dict.fromkeys(("xwinograd_zh", "xstorycloze_zh", "xnli_zh", "xcopa_zh"), "acc")),
}


def benchmarks(names: Iterable[str], held_out: Sequence[str]) -> dict[str, Benchmark]:
    """What `evaluation.tasks` asks for, by task, each once; PERPLEXITY is none of them.

    Args:
        held_out: the tasks that the suite of this name stands for here.
    """
    suites = SUITES | {HELD_OUT: _zero_shot(dict.fromkeys(held_out, "acc_norm"))}
    known = {benchmark.task: benchmark for suite in suites.values() for benchmark in suite}
    asked: dict[str, Benchmark] = {}
    for name in names:
        for benchmark in suites.get(name, (known.get(name, Benchmark(name)),)):
            if benchmark.task != PERPLEXITY:
                asked.setdefault(benchmark.task, benchmark)
    return asked


def suite_averages(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over the tasks of each suite of which all have a value."""
    averages = {}
    held_out = tuple(Benchmark(task) for task in values if task.startswith(f"{HELD_OUT}_"))
    for name, suite in (SUITES | {HELD_OUT: held_out}).items():
        if suite and all(benchmark.task in values for benchmark in suite):
            averages[name] = sum(values[benchmark.task] for benchmark in suite) / len(suite)
    return averages
