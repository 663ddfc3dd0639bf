"""Damaged data under the real command: one message that names corpus and shard, exit code 3, and no step on it."""

import json
import shutil

import pytest


@pytest.fixture
def damaged(settings, data, tmp_path):
    """The settings of the small family on data of which one shard of slimpajama has a flipped bit, and that shard."""
    shutil.copytree(data, tmp_path / "data", symlinks=True)
    shards = sorted((tmp_path / "data" / "shards").glob("*/slimpajama@*/train/*.mds"))
    content = bytearray(shards[0].read_bytes())
    content[-5] ^= 1
    shards[0].write_bytes(content)
    return [*settings, f"paths.data={tmp_path / 'data'}", f"paths.runs={tmp_path / 'runs'}"], shards[0]


@pytest.mark.slow
@pytest.mark.parametrize("placement", [(), ("cluster.processes=2", "cluster.workers=1")])
def test_a_run_on_a_damaged_shard_ends_in_one_sentence_and_goes_on_once_it_is_restored(
    shell, damaged, data, tmp_path, placement
):
    overrides, shard = damaged
    ended = shell("train", "+variant=standard", "stage=basic", *overrides, *placement)
    assert ended.code == 3, ended.err
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith(f"error: corpora.slimpajama: shard {shard} is damaged: its sha256 is ")
    shutil.copy(data / shard.relative_to(tmp_path / "data"), shard)
    assert shell("train", "+variant=standard", "stage=basic", *overrides, *placement).code == 0
    (run,) = (tmp_path / "runs" / "demo").iterdir()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 17))
