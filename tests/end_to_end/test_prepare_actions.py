"""`prepare action=...` on the small corpora: what people see, what programs see, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORPORA = ["slimpajama", "starcoder", "proof_pile_2", "skypile"]


@pytest.fixture
def here(settings, data, tmp_path):
    """The settings with a copy of the prepared corpora, which may be damaged."""
    shutil.copytree(data, tmp_path / "data", symlinks=True)
    places = [f"paths.data={tmp_path / 'data'}", f"paths.runs={tmp_path / 'runs'}"]
    return [*settings, *places, "validation.fraction=0.1", "tracking=none"]


def shard_of(tmp_path: Path, corpus: str) -> Path:
    (path,) = (tmp_path / "data" / "shards").glob(f"*/{corpus}/train/shard.000000.mds")
    return path


def test_all_corpora_are_checked_and_what_is_wrong_ends_the_command_with_3(here, run, tmp_path):
    result = run("prepare", *here, "action=check", "format=json")
    documents = json.loads(result.out)
    assert (result.code, [each["corpus"] for each in documents]) == (0, CORPORA)
    assert all(each["ok"] and all(check["ok"] for check in each["checks"]) for each in documents)

    shard = shard_of(tmp_path, "skypile")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    result = run("prepare", *here, "action=check", "corpus=[starcoder,skypile]", "format=json")
    sound, damaged = json.loads(result.out)
    assert (result.code, sound["ok"], damaged["ok"]) == (3, True, False)
    assert "train/shard.000000.mds has sha256" in next(
        check["detail"] for check in damaged["checks"] if not check["ok"]
    )
    assert "error: not as they were prepared: skypile (shards)" in result.err

    table = run("prepare", *here, "action=check", "corpus=skypile")
    assert (table.code, "wrong" in table.out, "overlap of samples" in table.out) == (3, True, True)


def test_a_sample_is_shown_with_the_documents_that_it_is_made_of(here, run):
    result = run("prepare", *here, "action=show", "corpus=starcoder", "sample=0", "split=validation", "format=json")
    assert result.code == 0, result.err
    shown = json.loads(result.out)
    assert (shown["corpus"], shown["split"], shown["sample"], shown["tokens"]) == ("starcoder", "validation", 0, 33)
    assert sum(each["tokens"] for each in shown["documents"]) == 33
    assert shown["documents"][0]["file"].endswith(".parquet")

    text = run("prepare", *here, "action=show", "corpus=starcoder", "sample=0", "split=validation")
    first = shown["documents"][0]
    assert f"{first['file']}:{first['row']} ({first['source_set']})" in text.out
    assert first["text"].split("\n")[0] in text.out


@pytest.mark.parametrize(
    "settings_of, message",
    [
        (
            ["sample=0"],
            "action=show shows a sample of one corpus, but slimpajama, starcoder, proof_pile_2, skypile are",
        ),
        (["corpus=skypile"], "action=show wants to know which sample: sample=N, counted from 0, below "),
        (["corpus=skypile", "sample=0", "split=valid"], "split=valid is not known; did you mean validation?"),
        (["corpus=skypile", "sample=0", "packing.seq_len=64"], "corpora.skypile is not prepared: there is no "),
        (["action=upload", "corpus=skypile"], "action=upload needs to know whither: paths.remote="),
        (
            ["hydra/launcher=slurm", "corpus=skypile", "sample=0"],
            "action=show is done on this machine: add hydra/",
        ),
    ],
)
def test_what_cannot_be_done_is_one_message(small, run, settings_of, message):
    result = run("prepare", *small, "action=show", *settings_of)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}"), result.err


def test_pictures_of_what_was_prepared_stay_beside_it_and_are_drawn_once(here, run, tmp_path):
    result = run("prepare", *here, "corpus=[skypile,proof_pile_2]")
    assert (result.code, result.err.count("already prepared")) == (0, 2), result.err
    (folder,) = (tmp_path / "data" / "shards").glob("*/pictures")
    names = {path.name.partition("@")[0] + path.name.partition("-")[2] for path in folder.iterdir()}
    assert {"skypilelengths.svg", "proof_pile_2source_sets.svg", "corpora.svg", "corpora.png"} <= names
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run("prepare", *here, "corpus=[skypile,proof_pile_2]").code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert run("prepare", *here, "corpus=skypile", f"plots={tmp_path / 'plots'}").code == 0
    assert [path.suffix for path in sorted((tmp_path / "plots").iterdir())] == [".png", ".svg"]


def test_whoever_has_read_enough_of_the_output_is_told_nothing_more(settings):
    reading, writing = os.pipe()
    os.close(reading)
    command = ["-u", "-m", "tinyllama.prepare", *settings, "action=check", "corpus=skypile", "format=json"]
    done = subprocess.run(
        [sys.executable, *command], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "skypile: reading all of it\n")
