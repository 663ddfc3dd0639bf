"""The JSON of one run."""

import json

import pytest

from tinyllama.data.inventory import take_inventory
from tinyllama.planning.cost import Throughput
from tinyllama.planning.document import plan_document
from tinyllama.planning.plan import make_plan


@pytest.fixture
def document(compose, tmp_path):
    def write(*overrides, rate=None):
        path = compose(f"paths.data={tmp_path}", *overrides)
        made = plan_document(make_plan(path, take_inventory(path)), path[-1], ["chinese"], "absent", "there", rate)
        assert json.loads(json.dumps(made)) == made
        return made

    return write


def test_a_run_is_told_from_the_root_to_its_end(document):
    made = document("+variant=chinese", "stage=continual", "cluster=a100_40g_x4")
    assert made["parent"] is not None and made["origin"] is None
    assert made["ramp_tokens"] == 6_000_000_000
    slimpajama, skypile = made["corpora"]["slimpajama"], made["corpora"]["skypile"]
    assert (slimpajama["weight_start"], slimpajama["weight_end"]) == (1, 0.5)
    assert slimpajama["epochs_before"] == pytest.approx(2.39, abs=0.01)
    assert (skypile["weight_start"], skypile["weight_end"], skypile["epochs_before"]) == (0, 0.5, 0)
    assert skypile["tokens"] + slimpajama["tokens"] == made["tokens"] == made["end_tokens"] - made["start_tokens"]


def test_memory_and_time_are_those_of_the_cluster(document):
    made = document("stage=basic", "cluster=a100_40g_x4", "cluster.price_per_gpu_hour=2")
    memory, time = made["memory"], made["time"]
    assert 30 < memory["gib_per_gpu"] < memory["gib_available"] == 39.4
    assert sum(memory["parts_gib"].values()) > memory["gib_per_gpu"] > max(memory["parts_gib"].values())
    assert time["gpu_hours"] == pytest.approx(3456 * 5, rel=0.02)
    assert time["hours"] == pytest.approx(time["gpu_hours"] / 64)
    assert time["cost"] == pytest.approx(2 * time["gpu_hours"])
    assert made["checkpoint_bytes"] == 12 * 1_100_048_384
    assert made["checkpoints_bytes"] == 3 * made["checkpoint_bytes"]  # the last two and the end


def test_a_measured_throughput_is_named_as_such(document):
    time = document("stage=basic", rate=Throughput(1e6, "runs"))["time"]
    assert time["gpu_hours"] == pytest.approx(1.5e12 / 1e6 / 3600, rel=1e-6)
    assert (time["source"], time["cost"]) == ("runs", None)


def test_a_cluster_of_which_nothing_is_known_gives_null_and_not_zero(document):
    made = document("stage=basic")
    assert {made["time"][name] for name in ("gpu_hours", "hours", "cost", "tokens_per_second_per_gpu")} == {None}
    assert made["memory"]["gib_available"] is None


def test_what_ranks_send_is_told_in_bytes_and_as_a_share_of_the_step_that_the_throughput_makes(document):
    made = document("stage=basic", "cluster=a100_40g_x4", rate=Throughput(20_000, "runs"))
    sent = made["communication"]
    assert sent["layout"] == "ZeRO 1"
    assert sent["gb_per_step"] == pytest.approx((2 * 4 + 2) * 1.100048384 * 63 / 64)
    step = made["batch_tokens"] / (64 * 20_000)
    assert sent["share"] == pytest.approx(sent["seconds_per_step"] / step)
    assert 0 < sent["share"] < 1


def test_one_rank_sends_nothing_and_without_bandwidths_no_time_is_told(document):
    assert document("stage=basic", "cluster.processes=1")["communication"]["gb_per_step"] == 0
    sent = document("stage=basic", "cluster=a100_40g_x4", "cluster.network_gb_per_second=null")["communication"]
    assert sent["gb_per_step"] > 10
    assert (sent["seconds_per_step"], sent["share"]) == (None, None)
