"""Texts by the models of a small family, and by folders in Hugging Face's layout, from the command line."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.end_to_end.conftest import copy_runs, only_run
from tests.end_to_end.faults import flip
from tinyllama.model.transformers import load_hf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("transformers")]

GREEDY = "generation.temperature=0"
DRAWN = ["generation.temperature=1", "generation.seed=1", "generation.max_tokens=16"]
"""Small models tend to repeat their likeliest word; what they draw differs."""
PROMPT = "the river, (of) 山"


@pytest.fixture
def trained(settings, family_runs):
    """Overrides of the shared family."""
    return [*settings, f"paths.runs={family_runs}", "generation.max_tokens=12"]


@pytest.fixture(scope="module")
def exported(settings, family_runs, shell, tmp_path_factory):
    """The chinese continual model in Hugging Face's layout, its weights as they were trained."""
    folder = tmp_path_factory.mktemp("exported") / "chinese"
    declared = [*settings, f"paths.runs={family_runs}", "+variant=chinese", "stage=continual"]
    result = shell("export", *declared, f"out={folder}", "export.dtype=fp32")
    assert result.code == 0, result.err
    return folder


def document(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_the_greedy_text_is_that_of_the_exported_folder_here_and_in_transformers(trained, exported, run):
    ours = document(
        run("generate", *trained, "+variant=chinese", "stage=continual", GREEDY, f"prompt={PROMPT}", "format=json")
    )
    assert ours["prompt"] == PROMPT and 0 < ours["tokens"] <= 12
    shown = run("generate", *trained, GREEDY, f"run={exported}", f"prompt={PROMPT}")
    assert (shown.code, shown.out, shown.err) == (0, f"{PROMPT}{ours['text']}\n", "")
    theirs, tokenizer = load_hf(exported, torch.float32)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    tokens = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == PROMPT + ours["text"]


def test_one_prompt_is_continued_by_each_model_of_a_sweep_once_parents_first(trained, run):
    sweep = [*trained, "+variant=chinese", "stage=continual,basic", *DRAWN, f"prompt={PROMPT}"]
    basic, continual = document(run("generate", *sweep, "format=json"))["models"]
    assert (basic["model"].split("-")[0], continual["model"].split("-")[0]) == ("basic", "continual")
    assert basic["text"] != continual["text"], "nothing would tell them apart"
    shared = [*trained, "+variant=standard,chinese", "stage=basic", *DRAWN, f"prompt={PROMPT}", "format=json"]
    assert document(run("generate", *shared)) == basic
    shown = run("generate", *sweep)
    assert shown.code == 0 and shown.err == ""
    assert shown.out == (
        f"== standard, {basic['model']} ==\n{PROMPT}{basic['text']}\n"
        f"\n== chinese, {continual['model']} ==\n{PROMPT}{continual['text']}\n"
    )


def test_an_earlier_checkpoint_is_named_by_its_tokens(trained, run):
    basic = [*trained, "stage=basic", *DRAWN, f"prompt={PROMPT}", "format=json"]
    early, last = (document(run("generate", *basic, *chosen))["text"] for chosen in (["at_tokens=8192"], []))
    assert early != last
    result = run("generate", *basic, "at_tokens=5")
    assert result.code == 2 and "at_tokens=5" in result.err and "8192" in result.err


def test_standard_input_is_continued_and_who_stops_reading_ends_it_quietly(trained):
    command = [sys.executable, "-m", "tinyllama.generate", *trained, "stage=basic", "generation.max_tokens=24"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(f"{PROMPT}\n".encode())
    process.stdin.close()
    assert process.stdout.read(len(PROMPT.encode())).decode() == PROMPT
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_a_text_that_fills_the_context_ends_there_with_a_word(trained, run):
    result = run("generate", *trained, "stage=basic", "generation.max_tokens=999", "prompt=the")
    assert result.code == 0
    # Where it does not end by itself; a model that was trained on so little seldom does.
    told = document(run("generate", *trained, "stage=basic", "generation.max_tokens=999", "prompt=the", "format=json"))
    assert told["finish"] in ("eos", "seq_len") and ("fill" in result.err) == (told["finish"] == "seq_len")
    result = run("generate", *trained, "stage=basic", f"prompt={'the river ' * 40}")
    assert result.code == 2 and "leaves no room in the 32 tokens" in result.err


def test_damage_and_absence_are_told_in_one_message(trained, family_runs, run, tmp_path):
    result = run("generate", *trained, "stage=cooldown", "seed=2", "prompt=the")
    assert result.code == 2 and "stage=cooldown of variant=slimpajama has not been trained" in result.err
    result = run("generate", *trained, f"run={tmp_path}", "prompt=the")
    assert result.code == 2 and f"run={tmp_path}" in result.err
    (tmp_path / "config.json").write_text("{}")
    result = run("generate", *trained, f"run={tmp_path}", "prompt=the")
    assert result.code == 2 and f"{tmp_path} cannot be loaded as a Hugging Face model" in result.err
    copy_runs(family_runs, tmp_path / "runs", [("basic", "chinese")])
    here = only_run(tmp_path / "runs")
    weights = max((here / "checkpoints").iterdir()) / "weights.safetensors"
    flip(weights)
    result = run("generate", *trained, f"run={here}", "prompt=the")
    assert result.code == 3 and str(weights) in result.err and result.out == ""
