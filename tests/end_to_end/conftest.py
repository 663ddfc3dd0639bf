"""A small family on small corpora in the layouts of the real ones, prepared by the real command's function."""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tests.shared import copy_of, shared_folder
from tinyllama.config.app import compose_path, prepare_hydra
from tinyllama.config.location import conf_folder
from tinyllama.data.prepare import prepare_corpus
from tinyllama.data.tokenizer import train_tokenizer

SMALL = [
    "+scale=demo", "model.vocab_size=512", "tokenizer.vocab_size=512", "model.hidden_size=32", "model.num_layers=2",
    "model.num_heads=2", "model.num_kv_heads=1", "model.intermediate_size=64", "model.seq_len=32",
    "stages.basic.tokens=16K", "stages.basic.batch_tokens=1024", "stages.continual.tokens=8K",
    "stages.continual.batch_tokens=1024", "stages.continual.ramp_tokens=4K", "stages.cooldown.tokens=8K",
    "stages.cooldown.batch_tokens=2048", "schedule.warmup_tokens=2K", "schedule.horizon_tokens=32K",
    "checkpoint.every_tokens=6K", "validation.every_tokens=8K", "cluster.micro_batch=4", "cluster.threads=1",
    "tracking=none",
]  # fmt: skip
"""The demo, smaller still."""

WORDS = {
    "slimpajama": [
        "the",
        "of",
        "and",
        "river",
        "house",
        "mountain",
        "people",
        "year",
        "water",
        "light",
        "small",
        "great",
        "found",
        "under",
        "about",
        "never",
    ],
    "starcoder": [
        "def",
        "return",
        "self",
        "import",
        "for",
        "in",
        "range",
        "if",
        "else",
        "class",
        "None",
        "True",
        "print",
        "yield",
        "lambda",
        "assert",
    ],
    "proof_pile_2": [
        "let",
        "x",
        "be",
        "a",
        "prime",
        "theorem",
        "proof",
        "sum",
        "integral",
        "=",
        "+",
        "lemma",
        "hence",
        "squared",
        "epsilon",
        "delta",
    ],
    "skypile": [
        "山",
        "水",
        "人",
        "大",
        "小",
        "天",
        "地",
        "日",
        "月",
        "年",
        "学",
        "生",
        "中",
        "国",
        "城",
        "市",
        "春",
        "秋",
        "书",
        "文",
    ],
}


def documents(corpus: str, count: int = 60) -> list[str]:
    """Texts that are not like those of the other corpora."""
    dice = random.Random(corpus)
    return [" ".join(dice.choices(WORDS[corpus], k=dice.randint(40, 160))) + "." for _ in range(count)]


def write_raw(data: Path) -> None:
    """Raw corpora in the layouts of the real ones."""
    raw = data / "raw"
    for corpus, folder in (("slimpajama", "train/chunk1"), *((("proof_pile_2"), f"{part}/train") for part in
                           ("algebraic-stack", "arxiv", "open-web-math"))):  # fmt: skip
        path = raw / corpus / folder / "part.jsonl.zst"
        path.parent.mkdir(parents=True)
        rows = [{"text": f"{path.parent.parent.name} {text}", "meta": {"redpajama_set_name": "RedPajamaC4"}}
                for text in documents(corpus)]  # fmt: skip
        path.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    for language in ("python", "jupyter-scripts"):
        path = raw / "starcoder" / language / "part.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pa.table({"content": [f"# {language}\n{text}" for text in documents("starcoder")]}), path)
    path = raw / "skypile" / "data" / "part.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents("skypile")), encoding="utf-8")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared corpora, shared by all workers."""
    return shared_folder(tmp_path_factory, "data", _prepare)


def _prepare(folder: Path) -> None:
    write_raw(folder)
    train_tokenizer((text for name in WORDS for text in documents(name)), folder / "tokenizers" / "demo.model", 512)
    prepare_hydra()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose_path([*SMALL, f"paths.data={folder}", "validation.fraction=0.1"])[-1]
    for corpus in config.corpora.values():
        prepare_corpus(replace(corpus), config.tokenizer, config.model.seq_len, folder)


VARIANTS, STAGES = ("standard", "math_code", "chinese"), ("basic", "continual", "cooldown")
SWEEP = ["+variant=standard,math_code,chinese", "stage=cooldown,basic,continual"]  # in any order of words


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new sqlite store of MLflow's, made once because its migrations take seconds; copied to RUNS/mlflow.db."""

    def build(folder: Path) -> None:
        from tinyllama.lineage.mlflow import open_store

        open_store(f"sqlite:///{folder / 'mlflow.db'}")

    return shared_folder(tmp_path_factory, "store", build) / "mlflow.db"


TRACED = ["trace=true", "checkpoint.milestones=[8K]"]
SHARDED = ["cluster.processes=2", "cluster.zero_stage=3"]
"""How basic and the tracked continual stages of the shared family are placed."""
TRACKED = ["+variant=standard,chinese", "stage=basic,continual"]


@pytest.fixture(scope="session")
def family_runs(
    settings: list[str], shell: Callable[..., Any], store_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The runs folder of the whole family, three stages of three variants, each run with its trace.

    A first sweep trains basic and two continual stages on two ranks with ZeRO-3, recorded in MLflow. The sweep of the
    whole family then trains the other four on one rank, not recorded: every recorder is a process that imports MLflow.

    All workers share it and read it only; `family_copy` may be modified.
    """

    def build(folder: Path) -> None:
        shutil.copy(store_template, folder / "mlflow.db")
        for sweep in ([*TRACKED, *SHARDED, "tracking=mlflow"], SWEEP):
            result = shell("train", "-m", *settings, f"paths.runs={folder}", *TRACED, *sweep)
            assert result.code == 0, result.err

    return shared_folder(tmp_path_factory, "family", build)


@pytest.fixture
def family_copy(family_runs: Path, tmp_path: Path) -> Path:
    """A copy of the family's runs folder that the test may modify: tmp_path / "runs"."""
    return _with_its_own_store(copy_of(family_runs, tmp_path / "runs"), family_runs)


def run_folder(runs: Path, stage: str, variant: str) -> Path:
    """The directory of a run of a variant, below the runs folder of a family; basic is of all variants."""
    for folder in (runs / "demo").glob(f"{stage}-*"):
        if stage == "basic" or variant in json.loads((folder / "plan.json").read_text())["variants"]:
            return folder
    raise AssertionError(f"no run of {stage} for {variant}")


def copy_runs(runs: Path, target: Path, wanted: list[tuple[str, str]]) -> Path:
    """A runs folder with the store and with copies of those runs, each a stage and a variant; it may be modified."""
    (target / "demo").mkdir(parents=True)
    shutil.copy(runs / "mlflow.db", target)
    copy_of(runs / "mlartifacts", target / "mlartifacts")
    for folder in (run_folder(runs, stage, variant) for stage, variant in wanted):
        copy_of(folder, target / "demo" / folder.name)
    return _with_its_own_store(target, runs)


def _with_its_own_store(runs: Path, source: Path) -> Path:
    """A copied runs folder whose MLflow store keeps artifacts there: MLflow records where they are in full."""
    with closing(sqlite3.connect(runs / "mlflow.db")) as store, store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            moved = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            assert store.execute(moved, (f"{source}/", f"{runs}/")).rowcount > 0
    return runs


def only_run(runs: Path) -> Path:
    """The directory of the only run of the family."""
    (folder,) = (runs / "demo").iterdir()
    return folder


def lines(path: Path) -> list[dict]:
    """The lines of a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def adopted_runs(
    family_runs: Path, settings: list[str], shell: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A runs folder with one basic run of another seed, which continues an adopted checkpoint of the family's."""

    def build(folder: Path) -> None:
        source = run_folder(family_runs, "basic", "standard") / "checkpoints" / f"{8192:015d}"
        adopting = ["stage=basic", "seed=1", f"adopt={source}"]
        result = shell("train", *settings, *TRACED, f"paths.runs={folder}", *adopting)
        assert result.code == 0, result.err

    return shared_folder(tmp_path_factory, "adopted", build)


@pytest.fixture(scope="session")
def settings(data: Path) -> list[str]:
    """Overrides of the small family."""
    return [*SMALL, f"paths.data={data}"]


@pytest.fixture
def small(settings: list[str], tmp_path: Path) -> list[str]:
    """The same, its runs in a folder of the test's own: tmp_path / "runs"."""
    return [*settings, f"paths.runs={tmp_path / 'runs'}"]
