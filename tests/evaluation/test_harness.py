"""lm-eval itself, asked about small models and tasks."""

import json
import random
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

from tinyllama.errors import ConfigError
from tinyllama.evaluation.harness import Answer, Questions, Row, ScoringLM
from tinyllama.evaluation.suites import SUITES, Benchmark

pytestmark = pytest.mark.xdist_group("evaluate")  # lm-eval takes seconds to import

TASK = """\
task: {name}
dataset_path: {dataset}
dataset_kwargs:
  data_files:
    test: questions/{name}.jsonl
test_split: test
output_type: {kind}
doc_to_text: context
doc_to_choice: endings
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: {metric}}}]
"""


def write_task(folder: Path, name: str, dataset: str = "json", kind: str = "multiple_choice", more: str = "") -> None:
    (folder / "questions").mkdir(exist_ok=True)
    rows = [{"context": f"{row}:", "endings": ["right", "wrong"], "label": int(row % 4 == 3)} for row in range(8)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "questions" / f"{name}.jsonl").write_text(lines)
    metric = "acc" if kind == "multiple_choice" else "exact_match"
    text = TASK.format(name=name, dataset=dataset, kind=kind, metric=metric)
    (folder / f"{name}.yaml").write_text(text + more)


def ask(folder: Path, *names: str, **how: bool) -> Questions:
    return Questions({name: Benchmark(name) for name in names}, [folder], **how)


class Planted:
    """Prefers "right" always: so it is wrong each fourth time."""

    def __init__(self) -> None:
        self.rows = 0
        self.lm = ScoringLM(lambda text: list(text.encode()), 0, self.score)

    def score(self, rows: list[Row]) -> list[Answer]:
        self.rows += len(rows)
        random.random(), np.random.rand(), torch.rand(1)
        return [(-1.0 if bytes(continuation) == b"right" else -2.0, False) for _, continuation in rows]


def test_a_task_of_a_folder_reads_its_data_there_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_task(tmp_path, "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    score = ask(tmp_path, "mine").ask(Planted().lm, None)["mine"]
    assert (score.metric, score.value, score.samples, score.shots) == ("acc", 75.0, 8, 0)
    assert score.stderr == pytest.approx(100 * (0.75 * 0.25 / 7) ** 0.5)


def test_a_group_of_a_folder_has_its_average_or_else_its_tasks_have_their_values(tmp_path: Path):
    write_task(tmp_path, "one")
    write_task(tmp_path, "other")
    group = "group: {name}\ntask: [one, other]\n"
    (tmp_path / "plain.yaml").write_text(group.format(name="plain"))
    (tmp_path / "whole.yaml").write_text(group.format(name="whole") + "aggregate_metric_list: [{metric: acc}]\n")
    assert {name: score.value for name, score in ask(tmp_path, "plain").ask(Planted().lm, 2).items()} == {
        "one": 100, "other": 100,
    }  # fmt: skip
    whole = ask(tmp_path, "whole").ask(Planted().lm, None)
    assert {name: (score.value, score.samples) for name, score in whole.items()} == {"whole": (75, 16)}


def test_a_limit_asks_so_many_questions_and_the_next_model_is_asked_anew(tmp_path: Path):
    write_task(tmp_path, "mine")
    questions, first, second = ask(tmp_path, "mine"), Planted(), Planted()
    assert questions.ask(first.lm, 3)["mine"].value == 100
    assert questions.ask(second.lm, None)["mine"].value == 75
    assert (first.rows, second.rows) == (6, 16)


def test_what_others_draw_at_random_is_as_if_nobody_had_been_asked(tmp_path: Path):
    write_task(tmp_path, "mine", more="num_fewshot: 2\nfewshot_split: test\n")
    questions = ask(tmp_path, "mine")

    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    questions.ask(Planted().lm, None)
    assert drawn() == expected


def test_a_task_whose_data_is_nowhere_to_be_had_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_task(tmp_path, "far", dataset="nobody/nothing")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"evaluation\.tasks=far needs the data set nobody/nothing.*HF_HOME"):
        ask(tmp_path, "far")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        ask(tmp_path, "far")


def test_a_task_that_runs_what_the_model_writes_wants_consent(tmp_path: Path):
    write_task(tmp_path, "risky", more="unsafe_code: true\n")
    with pytest.raises(ConfigError, match=r"evaluation\.run_code=true"):
        ask(tmp_path, "risky")
    assert ask(tmp_path, "risky", run_code=True).ask(Planted().lm, None)["risky"].value == 75


def test_a_task_that_has_the_model_write_is_refused_where_it_cannot(tmp_path: Path):
    write_task(tmp_path, "prose", kind="generate_until")
    with pytest.raises(ConfigError, match="evaluation.tasks=prose has the model write text"):
        ask(tmp_path, "prose", generates=False)


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_the_nearest_names_of_all_that_lm_eval_has(tmp_path: Path):
    every = {benchmark.task: benchmark for suite in SUITES.values() for benchmark in suite}
    with pytest.raises(ConfigError, match=r"evaluation\.tasks=helaswag is not known; did you mean .*hellaswag"):
        Questions(every | {"helaswag": Benchmark("helaswag")}, [tmp_path])
