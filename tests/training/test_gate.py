"""What keeps a stage from being trained before anything is spent. The disk is the one that the tests run on."""

import json
import shutil

import numpy as np
import pytest

from tests.data.versions import write_version
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.data.inventory import take_inventory
from tinyllama.errors import ConfigError, DamageError
from tinyllama.planning.plan import make_plan
from tinyllama.planning.storage import checkpoint_bytes
from tinyllama.planning.tree import Job, Node, grow
from tinyllama.training.gate import disk_warnings, require_disk, require_sound_indices


@pytest.fixture
def nodes(compose, tmp_path):
    """The runs of a path whose checkpoints weigh the given share of what is free, about."""

    def make(share: float, *overrides: str) -> tuple[Node, ...]:
        hidden = 16
        parameters = share * shutil.disk_usage(tmp_path).free / 12
        sizes = [f"model.hidden_size={hidden}", f"model.intermediate_size={round(parameters / 3 / hidden / 1000)}"]
        path = compose(
            "+scale=demo", "model.num_layers=1000", "model.num_heads=1", "model.num_kv_heads=1", *sizes,
            f"paths.data={tmp_path}", f"paths.runs={tmp_path / 'runs' / 'deep'}", *overrides,
        )  # fmt: skip
        return grow([Job((), path, make_plan(path, take_inventory(path)))])

    return make


def test_a_disk_must_hold_two_checkpoints_of_a_run(nodes):
    require_disk(nodes(0.3, "stage=basic"))
    with pytest.raises(ConfigError, match=r"^paths\.runs=.*deep has .* free, and stage=basic needs .* for 2 checkpoin"):
        require_disk(nodes(0.6, "stage=basic"))


def test_a_run_that_has_checkpoints_needs_room_for_one_more(nodes):
    (node,) = nodes(0.6, "stage=basic")
    folder = RunFolder.of(node.config.paths.runs, node.plan)
    folder.checkpoint(1000).mkdir(parents=True)
    require_disk([node])
    (larger,) = nodes(1.2, "stage=basic")
    RunFolder.of(larger.config.paths.runs, larger.plan).checkpoint(1000).mkdir(parents=True)
    with pytest.raises(ConfigError, match="for 1 checkpoint, so that one is always whole; free .* or choose"):
        require_disk([larger])


def test_a_family_whose_checkpoints_will_not_all_fit_is_warned(nodes):
    settings = ["+variant=chinese", "checkpoint.keep=1", "checkpoint.every_tokens=1000"]
    assert not list(disk_warnings(nodes(0.1, "stage=basic", *settings)))
    (warning,) = disk_warnings(nodes(0.2, "stage=cooldown", *settings))
    assert "the checkpoints that 3 runs will keep take" in warning
    assert "lower checkpoint.keep" in warning


def test_what_is_there_counts(nodes):
    settings = ["+variant=chinese", "checkpoint.keep=1", "checkpoint.every_tokens=1000"]
    family = nodes(0.2, "stage=cooldown", *settings)
    for node in family:
        for tokens in (1, 2):
            RunFolder.of(node.config.paths.runs, node.plan).checkpoint(tokens).mkdir(parents=True)
    assert checkpoint_bytes(family[0].config) > 0
    assert not list(disk_warnings(family))


def test_an_index_that_the_plan_was_not_made_on_is_found_before_the_start(compose, tmp_path):
    splits = {split: np.arange(90).reshape(10, 9) for split in ("train", "validation")}
    version = write_version(tmp_path, "demo", "slimpajama", splits)
    path = compose("+scale=demo", "stage=basic", "model.seq_len=8", f"paths.data={tmp_path}", f"paths.runs={tmp_path}")
    nodes = grow([Job((), path, make_plan(path, take_inventory(path)))])
    require_sound_indices(nodes)
    index = version / "train" / "index.json"
    fields = json.loads(index.read_text())
    fields["shards"][0]["raw_data"]["hashes"]["sha256"] = "0" * 64
    index.write_text(json.dumps(fields))
    with pytest.raises(
        DamageError, match=f"^{version}: the shards that .* of corpora.slimpajama describe have the finge"
    ):
        require_sound_indices(nodes)
