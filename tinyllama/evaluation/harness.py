"""lm-eval: its tasks by name, and what a model makes of them. The only file that imports it."""

import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch

from tinyllama.errors import ConfigError, unknown
from tinyllama.evaluation.suites import HELD_OUT, PERCENT, PERPLEXITY, PREFERRED, SUITES, Benchmark
from tinyllama.model.transformers import library

library()  # first: lm-eval imports transformers in a way that wants its torchvision to be in order
try:
    import datasets
    import huggingface_hub
    from huggingface_hub.utils import reset_sessions
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml
except ImportError as error:
    raise ConfigError(f"lm-eval cannot be used ({error}); pip install 'tinyllama[eval]'") from error

SEED = 1234
"""Of the examples that are put into prompts, and of all else that is drawn."""
PROBE_SECONDS = 3.0
_LOCAL = ("data_files", "data_dir")

Row = tuple[list[int], list[int]]
"""Ids of a context, and of what is to continue it; neither is empty."""
Answer = tuple[float, bool]
"""Log-probability of the continuation, and whether it is what would be generated greedily."""

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for chatty in ("lm_eval", "datasets", "evaluate"):
    logging.getLogger(chatty).setLevel(logging.ERROR)
datasets.disable_progress_bars()


@dataclass(frozen=True)
class Score:
    """What a model reached on a task."""

    metric: str
    value: float
    stderr: float | None
    """None where lm-eval tells none."""
    samples: int
    shots: int | None
    """None where the tasks of a group differ."""
    version: str
    """Of the task."""
    metrics: Mapping[str, Mapping[str, float | None]]
    """All that it has, each with value and stderr."""


class ScoringLM(TemplateLM):
    """A model that tells how likely texts are, and writes none: what a model in training can do.

    Args:
        encode: text -> ids, with BOS where the model was trained with it.
        prefix: the token that stands for an empty context.
        score: answers rows, each with what it is asked.
    """

    def __init__(
        self, encode: Callable[[str], list[int]], prefix: int, score: Callable[[list[Row]], list[Answer]]
    ) -> None:
        super().__init__()
        self._tokenize, self._prefix, self._score = encode, prefix, score

    @property
    def eot_token_id(self) -> int:
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._tokenize(string)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[Answer]:
        return self._score([(context, continuation) for _, context, continuation in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise AssertionError("Questions refuses tasks that need it")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise AssertionError("Questions refuses tasks that need it")


def whole_lm(model: Any, tokenizer: Any, batch_size: int) -> HFLM:
    """A model of transformers that can do all that tasks ask for; probabilities are reckoned in fp32."""
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")


class Questions:
    """Tasks with their data, to be asked of one model after another.

    Args:
        benchmarks: by the name that was asked for.
        folders: where further tasks lie.
        run_code: tasks may run what the model writes.
        generates: the models can write text.

    Raises:
        ConfigError: a task is not known, its data cannot be had, or it needs what is not allowed.
    """

    def __init__(
        self, benchmarks: Mapping[str, Benchmark], folders: Sequence[Path], run_code: bool = False,
        generates: bool = True,
    ) -> None:  # fmt: skip
        self._run_code = run_code
        self._rows: dict[str, Benchmark] = {}
        self._tasks: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        manager = _manager(benchmarks, folders)
        for name, benchmark in benchmarks.items():
            loaded = self._load(manager, name)
            for task in loaded["tasks"].values():
                self._settle(task, benchmark, generates)
            self._tasks |= loaded["tasks"]
            self._groups |= loaded["groups"]
            group = loaded["groups"].get(name)
            rows = [name] if group and group.has_aggregation else loaded["tasks"]  # else it has no result of its own
            self._rows |= dict.fromkeys(rows, benchmark)

    def ask(self, lm: TemplateLM, limit: int | None, shown: bool = False) -> dict[str, Score]:
        """What the model reaches, by task, in percent where it is a share.

        The same model gives the same numbers: everything random is seeded here, and is afterwards as it was before.

        Args:
            limit: so many questions of each task at most.
            shown: with progress bars on standard error.
        """
        for task in self._tasks.values():
            task.set_fewshot_seed(seed=SEED)
        with _silence(shown), _seeded():
            found = evaluate(
                lm=lm,
                task_dict={"tasks": self._tasks, "groups": self._groups, "group_map": {}},
                limit=limit,
                log_samples=False,
                confirm_run_unsafe_code=self._run_code,
            )
        return {row: _score(row, benchmark, found) for row, benchmark in self._rows.items()}

    def _load(self, manager: TaskManager, name: str) -> dict[str, Any]:
        """From this machine if it holds the data, else from the hub if that can be reached."""
        entry = manager.task_index[name]
        if (entry.cfg or {}).get("unsafe_code"):
            self._require_consent(name)
        alone = huggingface_hub.constants.HF_HUB_OFFLINE
        try:
            with _hub(False):
                return dict(manager.load([name]))
        except Exception as error:
            missing = error
        path = (entry.cfg or {}).get("dataset_path")
        data = f"the data set {path}" if path else "the data of its tasks"
        if not alone and _is_reachable(huggingface_hub.constants.ENDPOINT):
            try:
                with _hub(True):
                    return dict(manager.load([name]))
            except Exception as error:
                missing = error
        why = "HF_HUB_OFFLINE is set" if alone else _first_cause(missing)
        raise ConfigError(
            f"evaluation.tasks={name} needs {data}, which is not on this machine and cannot be fetched "
            f"({why}); run it once where the hub can be reached, bring the cache here (HF_HOME), or give a task whose "
            f"data lies in evaluation.folder"
        ) from missing

    def _settle(self, task: Any, benchmark: Benchmark, generates: bool) -> None:
        if getattr(task, "UNSAFE_CODE", False):
            self._require_consent(task.task_name)
        if not generates and task.OUTPUT_TYPE not in ("loglikelihood", "multiple_choice"):
            raise ConfigError(
                f"evaluation.tasks={benchmark.task} has the model write text, which it does not do while it is in "
                f"training; leave it out there, and evaluate checkpoints on it"
            )
        shots = task.get_config("num_fewshot") if benchmark.shots is None else benchmark.shots
        task.set_config(key="num_fewshot", value=shots or 0)

    def _require_consent(self, name: str) -> None:
        if not self._run_code:
            raise ConfigError(
                f"evaluation.tasks={name} runs code that the model has written, on this machine and with your rights; "
                f"where that can do no harm allow it by evaluation.run_code=true, or leave the task out"
            )
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"


def _first_cause(error: BaseException) -> str:
    """`datasets` says of what went wrong only that something did."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _manager(names: Mapping[str, Benchmark], folders: Sequence[Path]) -> TaskManager:
    """One that knows all of these tasks. Those that come with lm-eval are many, and are read only when needed."""
    manager = TaskManager(include_path=list(folders), include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=list(folders))
    for name in names:
        if name not in manager.task_index:
            known = [*SUITES, HELD_OUT, PERPLEXITY, *manager.all_tasks]
            raise unknown("evaluation.tasks", name, get_close_matches(name, known, cutoff=0.5) or known[: len(SUITES)])
    for entry in manager.task_index.values():
        path = entry.yaml_path
        if path is not None and any(path.is_relative_to(folder) for folder in folders):
            entry.cfg, entry.yaml_path = _with_whole_paths(load_yaml(path), path.parent), None
    return manager


def _with_whole_paths(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A task whose files are named from its own folder; datasets would look for them in the working directory."""
    given = config.get("dataset_kwargs")
    if not given:  # not even an empty one: what a group has goes before what its tasks have
        return config
    return config | {"dataset_kwargs": {n: _whole(v, folder) if n in _LOCAL else v for n, v in given.items()}}


def _whole(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _whole(entry, folder) for name, entry in value.items()}
    if isinstance(value, list):
        return [_whole(entry, folder) for entry in value]
    return str(folder / value) if isinstance(value, str) and "://" not in value else value


def _score(row: str, benchmark: Benchmark, found: Mapping[str, Any]) -> Score:
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in found["results"][row].items():
        name, comma, chosen_by = key.partition(",")
        if comma and not name.endswith("_stderr"):
            scale = 100 if name in PERCENT else 1
            stderr = found["results"][row].get(f"{name}_stderr,{chosen_by}")
            # Of several ways to find the answer in what was written, the first counts.
            metrics.setdefault(
                name, {"value": scale * value, "stderr": scale * stderr if isinstance(stderr, float) else None}
            )
    metric = benchmark.metric or next((name for name in PREFERRED if name in metrics), next(iter(metrics)))
    members = _members(row, found)
    shots = {found["n-shot"].get(member) for member in members}
    return Score(
        metric=metric,
        value=float(metrics[metric]["value"] or 0.0),
        stderr=metrics[metric]["stderr"],
        samples=sum(found["n-samples"][member]["effective"] for member in members),
        shots=shots.pop() if len(shots) == 1 else None,
        version=str(found["versions"].get(row)),
        metrics=metrics,
    )


def _members(row: str, found: Mapping[str, Any]) -> list[str]:
    """The tasks of a group, or the task itself."""
    if row in found["n-samples"]:
        return [row]
    return [task for child in found["group_subtasks"].get(row, ()) for task in _members(child, found)]


@contextmanager
def _hub(reached: bool) -> Iterator[None]:
    """With Hugging Face's libraries told whether to ask the hub; what it gave before lies in their cache."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = not reached
    reset_sessions()
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
        reset_sessions()


def _is_reachable(address: str) -> bool:
    """Asked once and shortly: the libraries would try for minutes."""
    try:
        with urlopen(Request(address, method="HEAD"), timeout=PROBE_SECONDS):
            return True
    except HTTPError:  # it has answered
        return True
    except (OSError, ValueError):
        return False


@contextmanager
def _silence(shown: bool) -> Iterator[None]:
    """Nothing on standard output, which is for our own document; progress bars only where they are wanted."""
    with open(os.devnull, "w") as void, redirect_stdout(void), redirect_stderr(sys.stderr if shown else void):
        yield


@contextmanager
def _seeded() -> Iterator[None]:
    """What is drawn here depends on SEED alone, and training draws afterwards as if nothing had been."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
