"""The tree on disk: what was changed is refused or branched, what was trained elsewhere is adopted; forks and roots."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir

from tests.end_to_end.conftest import copy_runs, lines, run_folder
from tests.shared import copy_of
from tinyllama.config.app import compose_path
from tinyllama.config.location import conf_folder
from tinyllama.data.prepare import prepare_corpus
from tinyllama.data.streaming import ShardStore
from tinyllama.world import World

QUIET = ["tracking=none", "trace=true"]
BASIC = [*QUIET, "stage=basic", "checkpoint.milestones=[8K]"]


@pytest.fixture
def standing(family_runs, tmp_path) -> Path:
    """Copies of basic and of chinese's continual for the test alone."""
    copy_runs(family_runs, tmp_path / "runs", [("basic", "chinese"), ("continual", "chinese")])
    return tmp_path / "runs" / "demo"


def only(family: Path, stage: str) -> Path:
    (folder,) = family.glob(f"{stage}-*")
    return folder


CHANGES = {
    "a weight": (["stage=continual", "+variant=chinese", "data_mix.weights.skypile=60"],
                 ["mix.skypile", "0.5", "0.545454545455", "the 8.19K tokens of continual"]),
    "the learning rate of all": (["stage=continual", "+variant=chinese", "optimizer.learning_rate=0.002"],
                                 ["stage=basic", "optimizer.learning_rate", "0.003", "0.002", "1 that continue it"]),
    "the common stage, by another variant": (["stage=basic", "+variant=standard", "seed=1"], ["seed", "3407"]),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_value_is_refused_field_by_field_before_anything_is_written(change, standing, small, run):
    overrides, words = CHANGES[change]
    before = sorted(standing.rglob("*"))
    result = run("train", *small, *overrides)
    assert result.code == 3
    assert [word for word in [*words, "branch=true", str(standing)] if word not in result.err] == []
    assert sorted(standing.rglob("*")) == before


def test_a_sweep_is_refused_like_a_single_run(standing, small, run):
    result = run("train", "-m", *small, "+variant=chinese,standard", "stage=basic,continual", "seed=1")
    assert result.code == 3
    assert "stage=basic" in result.err and "seed" in result.err


def test_a_branch_is_trained_beside_what_stands_and_from_then_on_stands_itself(standing, small, shell, run):
    changed = [*small, *QUIET, "+variant=chinese", "stage=continual", "data_mix.weights.skypile=60"]
    assert run("train", *changed).code == 3
    result = shell("train", *changed, "branch=true")
    assert result.code == 0, result.err
    assert len(list(standing.glob("continual-*/DONE"))) == 2
    assert run("train", *changed).code == 0, "what stands under its own digest is no drift"
    document = json.loads(run("plan", *changed, "format=json").out)
    assert [node["status"] for node in document["nodes"]] == ["done", "done"]
    (other,) = document["beside"]
    assert (other["stage"], other["variants"]) == ("continual", ["chinese"])
    assert other["digest"] != document["nodes"][1]["digest"]


def test_runs_that_one_sweep_declares_may_stand_beside_each_other(standing, small, run):
    """The one that is new starts; that nothing of it can be read here shows that it came so far."""
    sweep = [*small, "+variant=chinese", "stage=continual", "data_mix.weights.skypile=50,60", "paths.data=nowhere"]
    assert "is not prepared" in run("train", "-m", *sweep).err
    assert run("train", "-m", *sweep[:-1], "cluster.nodes=2").code == 2


def test_a_corpus_that_was_prepared_anew_is_named_with_both_manifests(standing, small, run, data, compose, tmp_path):
    shutil.copytree(data, tmp_path / "data", symlinks=True)
    config = compose(*small, f"paths.data={tmp_path / 'data'}")[-1]
    raw = tmp_path / "data" / "raw" / "skypile" / "data" / "part.jsonl"
    raw.write_text(raw.read_text() + json.dumps({"text": "春山" * 200}) + "\n", encoding="utf-8")
    prepare_corpus(config.corpora["skypile"], config.tokenizer, config.model.seq_len, tmp_path / "data")
    result = run("train", *small, f"paths.data={tmp_path / 'data'}", "+variant=chinese", "stage=continual")
    assert result.code == 3
    latest = tmp_path / "data" / "shards" / "demo-32" / "skypile"
    for path in (
        latest.with_name(latest.readlink().name) / "manifest.json",
        only(standing, "continual") / "corpora.json",
    ):
        assert path.is_file() and str(path) in result.err
    assert "corpora.skypile" in result.err and "corpora.slimpajama" not in result.err
    (way_back,) = re.findall(r"Add (corpora.skypile.version=\w+) to go on with what stands", result.err)
    again = run("train", *small, f"paths.data={tmp_path / 'data'}", "+variant=chinese", "stage=continual", way_back)
    assert "is done" in again.err


def test_an_identity_that_does_not_give_its_directory_is_damage(standing, small, run):
    identity = only(standing, "continual") / "identity.json"
    identity.write_text(identity.read_text().replace("3407", "3408"))
    result = run("train", *small, "+variant=standard", "stage=continual")
    assert result.code == 3
    assert str(identity) in result.err and "damaged" in result.err


def test_a_checkpoint_is_adopted_under_a_declared_identity_and_says_so(family_runs, adopted_runs, settings, run):
    old, (new,) = run_folder(family_runs, "basic", "chinese"), (adopted_runs / "demo").iterdir()
    source = old / "checkpoints" / f"{8192:015d}"
    assert new.name != old.name
    assert [line["step"] for line in lines(new / "metrics.jsonl")] == list(range(9, 17))
    manifests = [json.loads(path.read_text()) for path in sorted(new.glob("checkpoints/*/manifest.json"))]
    assert {manifest["adopted"]["path"] for manifest in manifests} == {str(source)}
    assert {manifest["adopted"]["digest"] for manifest in manifests} == {
        json.loads((old / "identity.json").read_text())["digest"]
    }
    command = [*settings, f"paths.runs={adopted_runs}", *BASIC, "seed=1", f"adopt={source}"]
    assert "is done" in run("train", *command).err


def test_a_finished_run_is_adopted_whole(standing, small, shell):
    old = only(standing, "basic")
    result = shell("train", *small, *BASIC, "seed=1", f"adopt={old}")
    assert result.code == 0, result.err
    (new,) = set(standing.glob("basic-*")) - {old}
    assert (new / "DONE").is_file() and lines(new / "metrics.jsonl") == []


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["adopt=nowhere"], ["neither a checkpoint nor"]),
        (["adopt={basic}", "stages.basic.tokens=8K"], ["no step of stage=basic"]),
        (["adopt={basic}", "model.num_layers=3"], ["bytes of weights"]),
        (["adopt={continual}"], ["no step of stage=basic"]),
    ],
)
def test_what_cannot_be_adopted_is_refused(standing, small, run, overrides, words):
    folders = {stage: only(standing, stage) for stage in ("basic", "continual")}
    result = run("train", *small, *BASIC, "seed=1", *(text.format(**folders) for text in overrides))
    assert result.code == 2
    assert [word for word in words if word not in result.err] == []
    assert len(list(standing.iterdir())) == 2


def test_a_fork_goes_on_from_a_milestone_of_its_parent(standing, small, shell):
    basic, other = only(standing, "basic"), only(standing, "continual")
    fork = [*small, *QUIET, "+variant=math_code", "stage=continual", "stage.fork_at_tokens=8K"]
    result = shell("train", *fork)
    assert result.code == 0, result.err
    (forked,) = set(standing.glob("continual-*")) - {other}
    assert lines(forked / "metrics.jsonl")[0]["tokens"] == 8192 + 1024
    before = lines(basic / "samples.jsonl")[7]["samples"]
    after = lines(forked / "samples.jsonl")[0]["samples"]
    draws = [draw for corpus, draw, _ in after if corpus == "slimpajama"]
    assert draws[0] == 1 + max(draw for corpus, draw, _ in before if corpus == "slimpajama")


def test_a_fork_where_no_checkpoint_is_kept_names_those_that_are(standing, small, run):
    result = run("train", *small, "+variant=math_code", "stage=continual", "stage.fork_at_tokens=4K")
    assert result.code == 2
    assert "has no checkpoint at 4096 tokens" in result.err and "8192" in result.err


def test_a_sweep_keeps_the_checkpoint_that_one_of_its_runs_forks_from(small, shell, tmp_path):
    sweep = ["+variant=chinese", "stage=basic,continual", "++stages.continual.fork_at_tokens=5K",
             "checkpoint.every_tokens=1M", *QUIET]  # fmt: skip
    result = shell("train", "-m", *small, *sweep)
    assert result.code == 0, result.err
    family = tmp_path / "runs" / "demo"
    kept = {int(path.name) for path in (only(family, "basic") / "checkpoints").iterdir()}
    assert kept == {5120, 16384}
    assert lines(only(family, "continual") / "metrics.jsonl")[0]["tokens"] == 5120 + 1024


@pytest.fixture(scope="module")
def saved(hugging_face, settings, data, tmp_path_factory):
    """A Llama as save_pretrained leaves it, in several files, with the tokenizer of the corpora; tests only read it."""
    from transformers import LlamaConfig

    from tinyllama.model.hf import hf_config

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose_path(settings)[-1]
    model = hugging_face(LlamaConfig(**hf_config(config.model)))
    folder = tmp_path_factory.mktemp("saved") / "pretrained"
    model.save_pretrained(folder, max_shard_size="50KB")
    shutil.copy(data / "tokenizers" / "demo.model", folder / "tokenizer.model")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder, model


@pytest.fixture
def hugging_face_folder(saved, tmp_path) -> Path:
    """A copy for the test alone."""
    return copy_of(saved[0], tmp_path / "pretrained")


@pytest.mark.xdist_group("transformers")
def test_a_run_starts_from_a_hugging_face_folder(saved, small, shell, data, tmp_path):
    """On two ranks with ZeRO-3, which place the weights in parts."""
    folder, theirs = saved
    placement = ["cluster.processes=2", "cluster.micro_batch=2", "cluster.zero_stage=3"]
    placement += ["stage.tokens=2K", "stage.ramp_tokens=1K"]
    result = shell("train", *small, *QUIET, "+variant=chinese", "stage=continual", f"parent=hf:{folder}", *placement)
    assert result.code == 0, result.err
    run_folder = only(tmp_path / "runs" / "demo", "continual")
    first, step = lines(run_folder / "samples.jsonl")[0], lines(run_folder / "metrics.jsonl")[0]
    assert (step["step"], step["tokens"]) == (1, 1024)
    names = ["skypile", "slimpajama"]
    store = ShardStore({name: data / "shards" / "demo-32" / name / "train" for name in names},
                       world=World(), run_id="of the test")  # fmt: skip
    rows = [store.tokens(names.index(corpus), sample) for corpus, _, sample in first["samples"]]
    tokens = torch.tensor([row.tolist() for row in rows])
    store.close()
    with torch.no_grad():
        logits = theirs(tokens[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert step["loss"] == pytest.approx(float(expected), rel=1e-5)
    meaning = json.loads((run_folder / "identity.json").read_text())["meaning"]
    assert meaning["parent"].startswith("hf:") and str(folder) not in json.dumps(meaning)


def other_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"another")


def missing_weights(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def other_positions(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_scaling": {"type": "linear", "factor": 2}}))


@pytest.mark.xdist_group("transformers")
@pytest.mark.parametrize(
    "spoil, overrides, words",
    [
        (None, ["model.num_layers=3"], ["model.num_layers=3", "num_hidden_layers=2"]),
        (None, ["model.vocab_size=600", "tokenizer.vocab_size=600"], ["model.vocab_size=600", "vocab_size=512"]),
        (other_vocabulary, [], ["tokenizer.model", "would mean other text"]),
        (missing_weights, [], ["has no model-"]),
        (other_positions, [], ["rope_scaling"]),
        (shutil.rmtree, [], ["config.json cannot be read"]),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    hugging_face_folder, small, run, spoil: Callable[[Path], None] | None, overrides, words
):
    folder = hugging_face_folder
    if spoil is not None:
        spoil(folder)
    result = run("train", *small, "+variant=chinese", "stage=continual", f"parent=hf:{folder}", *overrides)
    assert result.code == 2
    assert [word for word in words if word not in result.err] == []


@pytest.mark.xdist_group("transformers")
def test_a_sweep_starts_from_a_hugging_face_folder_where_its_own_first_stage_does(saved, small, run):
    sweep = ["+variant=chinese,math_code", "stage=continual,cooldown", f"parent=hf:{saved[0]}"]
    nodes = json.loads(run("plan", *small, *sweep, "format=json").out)["nodes"]
    assert [node["stage"] for node in nodes] == ["continual", "cooldown"] * 2
    digests = {node["digest"] for node in nodes}
    assert [node["parent"] in digests for node in nodes] == [False, True] * 2
    assert [node["start_tokens"] for node in nodes] == [0, 8192] * 2


def test_stages_of_ones_own_make_a_longer_path_with_a_second_ramp(small, run, shell, tmp_path):
    conf = tmp_path / "conf" / "stage"
    conf.mkdir(parents=True)
    (conf / "anneal.yaml").write_text(
        "name: anneal\nparent: cooldown\ntokens: 4K\nbatch_tokens: 1024\nramp_tokens: 2K\nmix: root\n"
    )
    own = ["--config-dir", str(conf.parent), *small, *QUIET, "schedule.horizon_tokens=36K"]
    missing = run("plan", *own, "stage=anneal")
    assert missing.code == 2 and "give ++stages.anneal.tokens=VALUE" in missing.err
    own.append("++stages.anneal={tokens: 4K, batch_tokens: 1024, ramp_tokens: 2K}")
    sweep = ["+variant=chinese", "stage=anneal,basic,cooldown,continual"]
    nodes = json.loads(run("plan", *own, *sweep, "format=json").out)["nodes"]
    assert [node["stage"] for node in nodes] == ["basic", "continual", "cooldown", "anneal"]
    assert [node["parent"] for node in nodes[1:]] == [node["digest"] for node in nodes[:-1]]
    assert [node["ramp_tokens"] for node in nodes] == [0, 4000, 0, 2000]
    skypile = nodes[-1]["corpora"]["skypile"]
    assert (skypile["weight_start"], skypile["weight_end"]) == (0.5, 0)

    result = shell("train", "-m", *own, *sweep)
    assert result.code == 0, result.err
    shares = [
        line["corpus_samples"]["skypile"]
        for line in lines(only(tmp_path / "runs" / "demo", "anneal") / "metrics.jsonl")
    ]
    assert shares[0] > shares[1] >= shares[2] == shares[3] == 0
