"""The report of a trained family: from its run directories, and from MLflow alone."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.conftest import copy_runs, run_folder
from tinyllama.lineage import mlflow
from tinyllama.lineage.mlflow_reading import points_asked, read_histories
from tinyllama.lineage.mlflow_store import MlflowStore

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("report")]


@pytest.fixture(scope="module")
def trained(family_runs, tmp_path_factory) -> Path:
    """A runs folder with basic and the continual of two variants, recorded in MLflow; copies of the shared family's."""
    runs = tmp_path_factory.mktemp("reported") / "runs"
    return copy_runs(family_runs, runs, [("basic", "standard"), ("continual", "standard"), ("continual", "chinese")])


@pytest.fixture(scope="module")
def page(trained, settings, shell) -> str:
    result = shell("report", *settings, f"paths.runs={trained}", "tracking=mlflow")
    assert result.code == 0, result.err
    path = trained / "demo" / "report.html"
    assert result.out.splitlines()[-1] == f"report: {path}"
    return path.read_text(encoding="utf-8")


def drawn(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def rows(page: str) -> list[str]:
    """The text of all tables' rows."""
    return [re.sub(r"<[^>]+>", " ", row).strip() for row in re.findall(r"<tr>(.*?)</tr>", page)]


def test_the_page_has_every_run_and_step_of_the_family(trained, page):
    folders = {path.name: path for path in (trained / "demo").glob("*-*")}
    runs = {run["name"]: run for run in drawn(page)["runs"]}
    assert set(runs) == set(folders)
    assert len(runs) == 3
    for name, folder in folders.items():
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert runs[name]["tokens"] == [step["tokens"] for step in steps]
        assert runs[name]["loss"]["mean"] == pytest.approx([step["loss"] for step in steps], rel=1e-4)
        last = steps[-1]["validation"]
        assert {corpus: found["mean"][-1] for corpus, found in runs[name]["validation"].items()} == pytest.approx(
            last, rel=1e-4
        )
        (row,) = [row.split() for row in rows(page) if row.startswith(name)]
        assert row[-5:] == [f"{loss:.3f}" for loss in (steps[-1]["loss"], *map(last.get, drawn(page)["corpora"]))]
        assert json.loads((folder / "identity.json").read_text())["digest"] in page
    assert not re.search(r'(src|href)="(?!#)', page)


def test_the_summary_tells_each_run_in_a_line_and_where_the_store_and_the_page_are(trained, page, small, run):
    result = run(
        "report", *small, f"paths.runs={trained}", "tracking=mlflow", f"out={trained / 'elsewhere' / 'page.html'}"
    )
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert len(lines) == 7
    assert [line.split()[0].split("-")[0] for line in lines[1:4]] == ["basic", "continual", "continual"]
    assert lines[4].startswith("3 of 3 runs done: 32.8K tokens in ")
    assert lines[5] == f"MLflow's store: sqlite:///{trained}/mlflow.db"
    assert lines[6] == f"report: {trained / 'elsewhere' / 'page.html'}"
    assert drawn((trained / "elsewhere" / "page.html").read_text()) == drawn(page)


def test_mlflow_alone_gives_the_same_page(trained, page, settings, run, tmp_path):
    runs = tmp_path / "moved"
    runs.mkdir()
    shutil.copy(trained / "mlflow.db", runs)
    hidden = trained.with_name("hidden")
    (trained / "demo").rename(hidden)
    try:
        asked = [f"paths.runs={runs}", "tracking=mlflow", "report.source=mlflow", f"out={tmp_path / 'page.html'}"]
        result = run("report", *settings, *asked)
    finally:
        hidden.rename(trained / "demo")
    assert (result.code, result.err) == (0, "")
    again = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert drawn(again) == drawn(page)
    assert rows(again) == rows(page)
    assert "does not tell which steps were skipped" in again


def test_a_server_is_asked_for_the_same_as_the_file_is_read_for(trained):
    uri = f"sqlite:///{trained / 'mlflow.db'}"
    read = MlflowStore(None, trained).histories("demo")
    client = mlflow.client_of(uri)
    asked = read_histories(client, "demo", partial(points_asked, client))
    assert len(read) == len(asked) == 3
    for one, other in zip(read, asked, strict=True):
        assert (one.name, one.tags, one.files, set(one.metrics)) == (
            other.name, other.tags, other.files, set(other.metrics)
        )  # fmt: skip
        assert all(one.metrics[name].tolist() == other.metrics[name].tolist() for name in one.metrics)


def test_a_run_that_is_cut_off_in_a_line_is_reported_as_unfinished(family_runs, small, run, tmp_path):
    copy_runs(family_runs, tmp_path / "runs", [("basic", "standard"), ("continual", "standard")])
    basic = run_folder(tmp_path / "runs", "basic", "standard")
    (basic / "DONE").unlink()
    metrics = basic / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    result = run("report", *small)
    assert result.code == 0, result.err
    assert re.search(r"basic-\w+ .*unfinished, 94%", result.out)


REFUSED = {
    "a family that does not exist": (["family=dmeo"], ["family=dmeo", "families there: demo"]),
    "a folder as the file": (["out=."], ["out=.", "is a folder", "report.html"]),
    "a place that cannot be written": (["out=/proc/page.html"], ["out=/proc/page.html", "cannot be written"]),
    "a store that is not there": (["report.source=mlflow", "tracking.uri=sqlite:////nowhere/mlflow.db"],
                                  ["/nowhere/mlflow.db", "report.source=runs"]),
    "no store at all": (["report.source=mlflow", "tracking=none"], ["tracking=none", "report.source=runs"]),
    "a family that the store does not have": (["report.source=mlflow", "family=dmeo"], ["family=dmeo", "tracking.uri"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_reported_gets_one_message(case, trained, small, run):
    overrides, words = REFUSED[case]
    result = run("report", *small, f"paths.runs={trained}", "tracking=mlflow", *overrides)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("error:") == 1
    assert [word for word in words if word not in result.err] == []
