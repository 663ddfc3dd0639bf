"""cluster.micro_batch at the door: a number comes out, whatever went in."""

import json
import os
from dataclasses import replace
from importlib import metadata

import pytest

from tinyllama.config.checks import check_path
from tinyllama.config.load import from_yaml, to_yaml
from tinyllama.config.micro_batch import Answer, answer_path, answer_text, divisors, read_answer, share, source
from tinyllama.errors import ConfigError, DamageError

AUTO = "cluster.micro_batch=auto"
DEVICE = "Some GPU 80GB"


@pytest.fixture
def config(compose, tmp_path):
    """One whose runs are in this test's folder: 64 samples a batch."""

    def composed(*overrides):
        size = ["model.seq_len=64", "packing.seq_len=64", "stage.batch_tokens=4096"]
        return compose("stage=basic", f"paths.runs={tmp_path / 'runs'}", *size, AUTO, *overrides)[-1]

    return composed


def remember(config, size, device=DEVICE):
    path = answer_path(config, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(answer_text(config, Answer(size, device, {"1": 2.0, str(size): 1.0})))
    return path


def again(config, tmp_path):
    """As it is read back from a file, which goes through the same door."""
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    return from_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "8.0", "big", "true", "null", "[4]", "AUTO", "''"])
def test_what_is_neither_a_number_above_0_nor_auto_is_one_clear_error(run, value):
    result = run("plan", "stage=basic", f"cluster.micro_batch={value}")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("error: cluster.micro_batch=") and "a whole number above 0, or auto" in line


def test_a_number_stays_what_it_is(compose, tmp_path):
    for value in ("4", "'4'"):
        (config,) = compose("stage=basic", f"cluster.micro_batch={value}")
        assert (config.cluster.micro_batch, config.cluster.micro_batch_is_auto) == (4, False)
    assert again(config, tmp_path) == config


@pytest.mark.parametrize(
    "setting, expected",
    [
        ([], 8),
        (["cluster.processes=16"], 4),
        (["cluster.processes=2", "cluster.nodes=2", "stage.batch_tokens=7936"], 1),  # 31 samples for each rank
        (["stage.batch_tokens=960"], 5),
    ],
    ids=str,
)
def test_before_anything_is_measured_auto_is_a_modest_divisor_of_the_share(config, setting, expected):
    found = config("cluster.processes=1", *setting)
    assert (found.cluster.micro_batch, found.cluster.micro_batch_is_auto) == (expected, True)
    assert share(found) % expected == 0
    assert source(found) == "provisional until the first run measures"
    check_path([found])


def test_a_batch_that_no_micro_batch_divides_is_told_without_a_remedy_that_is_none(config):
    with pytest.raises(ConfigError, match=r"stage\.batch_tokens=4096 is not a multiple of 192") as caught:
        check_path([config("cluster.processes=3")])
    assert "cluster.micro_batch" not in str(caught.value)


def test_what_was_measured_is_taken_and_told(config, tmp_path):
    remember(config(), 16)
    found = config("family=other")  # composed anew
    assert found.cluster.micro_batch == 16
    assert source(found) == f"measured on {DEVICE}"
    assert read_answer(found, answer_path(found, DEVICE)) == Answer(16, DEVICE, {"1": 2.0, "16": 1.0})


def test_the_last_device_that_was_measured_counts(config):
    old = remember(config(), 32, "elder")
    os.utime(old, (1, 1))
    remember(config(), 16, "newer")
    assert config("family=other").cluster.micro_batch == 16


@pytest.mark.parametrize(
    "other",
    ["model.num_layers=3", "stage.batch_tokens=8192", "cluster.processes=2", "cluster.zero_stage=3",
     "cluster.compile=true", "cluster.precision=bf16", "cluster.attention=sdpa",
     "cluster.activation_checkpointing=true"],
)  # fmt: skip
def test_what_was_measured_for_something_else_does_not_count(config, other):
    remember(config("cluster.processes=1"), 16)
    assert config("cluster.processes=1", other).cluster.micro_batch == 8


@pytest.mark.parametrize(
    "same",
    ["seed=3", "cluster.workers=2", "cluster.price_per_gpu_hour=2", "optimizer.learning_rate=1e-4"],
)
def test_what_makes_no_difference_to_speed_asks_no_new_question(config, same):
    remember(config(), 16)
    assert config(same).cluster.micro_batch == 16


def test_other_versions_of_the_libraries_ask_anew(config, monkeypatch):
    remember(config(), 16)
    stock = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "torch" else stock(name))
    assert config("family=other").cluster.micro_batch == 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"micro_batch": 16}'),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text(path.read_text().replace('"micro_batch": 16', '"micro_batch": 64')),
        lambda path: path.write_text(path.read_text().replace('"micro_batch": 16', '"micro_batch": 1.5')),
    ],
)
def test_a_damaged_file_counts_as_none_and_can_be_told_from_none(config, damage):
    path = remember(config(), 16)
    damage(path)
    found = config("family=other")
    assert found.cluster.micro_batch == 8
    with pytest.raises(DamageError, match=path.name):
        read_answer(found, path)
    path.unlink()
    assert read_answer(found, path) is None


def test_the_file_of_another_question_is_foreign(config):
    path = remember(config(), 16)
    other = config("model.num_layers=3")
    moved = path.rename(answer_path(other, DEVICE))
    with pytest.raises(DamageError, match="another model, cluster or version"):
        read_answer(other, moved)
    assert config("model.num_layers=3", "family=other").cluster.micro_batch == 8


def test_a_config_that_was_written_down_before_the_measuring_knows_of_it_afterwards(config, tmp_path):
    written = config()
    assert again(written, tmp_path) == written
    remember(written, 16)
    assert again(written, tmp_path) == replace(written, cluster=replace(written.cluster, micro_batch=16))


def test_a_number_given_after_auto_counts(config):
    remember(config(), 16)
    found = config("++cluster.micro_batch=2").cluster  # as the drill says
    assert (found.micro_batch, found.micro_batch_is_auto) == (2, False)


@pytest.mark.parametrize("number, expected", [(0, []), (1, [1]), (12, [1, 2, 3, 4, 6, 12]), (49, [1, 7, 49])])
def test_divisors_grow_and_are_whole(number, expected):
    assert divisors(number) == expected


@pytest.mark.slow
def test_plan_tells_what_auto_is_and_why(run, config, tmp_path):
    settings = ["stage=basic", "model.seq_len=64", "packing.seq_len=64", "stage.batch_tokens=4096",
                f"paths.data={tmp_path}", f"paths.runs={tmp_path / 'runs'}"]  # fmt: skip
    asked = config()
    assert "Micro-batch auto: 8, provisional until the first run measures." in run("plan", *settings, AUTO).out
    given = json.loads(run("plan", *settings, "cluster.micro_batch=4", "format=json").out)["nodes"][0]
    assert "Micro-batch" not in run("plan", *settings, "cluster.micro_batch=4").out
    assert given["micro_batch"] == {"samples": 4, "auto": False, "source": "as configured"}

    remember(asked, 16)
    assert f"Micro-batch auto: 16, measured on {DEVICE}." in run("plan", *settings, AUTO, "trace=true").out
    measured = json.loads(run("plan", *settings, AUTO, "trace=true", "format=json").out)["nodes"][0]
    assert measured["micro_batch"] == {"samples": 16, "auto": True, "source": f"measured on {DEVICE}"}
    assert measured["digest"] == given["digest"]


@pytest.mark.parametrize("room, certain", [(5, True), (8, False)])
def test_memory_is_refused_only_where_no_micro_batch_could_fit(run, tmp_path, room, certain):
    settings = ["stage=basic", "cluster=a100_40g_x4", f"cluster.gpu_memory_gib={room}", f"paths.runs={tmp_path}", AUTO]
    lints = json.loads(run("plan", *settings, f"paths.data={tmp_path}", "format=json").out)["lints"]
    found = [lint["message"] for lint in lints if "GiB per GPU" in lint["message"]]
    assert len(found) == certain
    assert all(each.startswith("cluster.micro_batch=auto, whatever it is, needs ") for each in found)
