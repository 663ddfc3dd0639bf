"""What checkpoints take on the disk."""

import pytest

from tinyllama.data.inventory import take_inventory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.storage import checkpoint_bytes, checkpoints_bytes


@pytest.fixture
def kept(compose, tmp_path):
    """How many checkpoints a stage keeps."""

    def count(*overrides: str) -> float:
        path = compose(f"paths.data={tmp_path}", *overrides)
        return checkpoints_bytes(make_plan(path, take_inventory(path)), path[-1]) / checkpoint_bytes(path[-1])

    return count


def test_a_checkpoint_of_the_original_model_weighs_13_gigabytes(compose):
    assert checkpoint_bytes(compose("stage=basic")[-1]) == 12 * 1_100_048_384


def test_a_run_keeps_the_latest_the_end_and_the_milestones_that_it_passes(kept):
    basic = ["stage=basic", "checkpoint.every_tokens=10B"]
    assert kept(*basic, "checkpoint.keep=3") == 3 + 1
    assert kept(*basic, "checkpoint.keep=3", "checkpoint.milestones=[100B,1T]") == 3 + 1 + 2
    assert kept(*basic, "checkpoint.keep=3", "checkpoint.milestones=[100B,1.6T]") == 3 + 1 + 1  # that is the child's


def test_a_run_does_not_keep_more_than_it_writes(kept):
    assert kept("stage=basic", "checkpoint.keep=5", "checkpoint.every_tokens=600B") == 2 + 1
    assert kept("stage=basic", "checkpoint.keep=5", "checkpoint.every_tokens=9T") == 1
