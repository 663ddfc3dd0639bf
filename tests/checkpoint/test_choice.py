"""Which run, which checkpoint: found by what is declared or by its directory, verified, and read."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from tests.laid import lay_run, random_weights
from tinyllama.checkpoint.choice import choose, choose_all, find_run, read_weights, tokenizer_file
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import take_inventory
from tinyllama.errors import ConfigError, DamageError
from tinyllama.planning.corpora import Inventory


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """A model of a few hundred weights, whose corpora are not prepared."""
    return [
        "+scale=demo", "model.hidden_size=8", "model.intermediate_size=8", "model.num_layers=1", "model.num_heads=2",
        f"paths.runs={tmp_path / 'runs'}", f"paths.data={tmp_path / 'data'}",
    ]  # fmt: skip


@pytest.fixture
def lay(compose: Callable[..., tuple[RunConfig, ...]], settings: list[str]) -> Callable[..., RunFolder]:
    """lay("stage=basic", ends=[3, 5]) puts a run onto the disk, with checkpoints after steps 3 and 5."""

    def lay_declared(*overrides: str, **how: object) -> RunFolder:
        path = compose(*settings, *overrides)
        return lay_run(path, take_inventory(path), **how)

    return lay_declared


@pytest.fixture
def job(compose: Callable[..., tuple[RunConfig, ...]], settings: list[str]) -> Callable[..., tuple]:
    """job("stage=basic") -> config and overrides, as a command is given them."""
    return lambda *overrides: (compose(*settings, *overrides)[-1], [*settings, *overrides])


def test_the_newest_checkpoint_of_the_declared_run_is_taken_unless_another_is_named(lay, job) -> None:
    folder = lay("stage=basic", "+variant=chinese", ends=[3, 5, 7])
    newest = choose(*job("stage=basic", "+variant=chinese"))
    assert (newest.folder.path, newest.tokens) == (folder.path, folder.checkpoint_tokens()[-1])
    assert (newest.name, newest.variant) == (folder.path.name, "chinese")
    for tokens in folder.checkpoint_tokens():
        chosen = choose(*job("stage=basic", f"at_tokens={tokens}"))
        assert chosen.checkpoint.path == folder.checkpoint(tokens)


def test_a_position_without_a_checkpoint_is_answered_with_those_that_stand(lay, job) -> None:
    folder = lay("stage=basic", ends=[3, 5])
    first, second = folder.checkpoint_tokens()
    with pytest.raises(ConfigError, match=rf"at_tokens={first + 1}: .* those at {first}, {second} stand"):
        choose(*job("stage=basic", f"at_tokens={first + 1}"))


def test_a_directory_is_taken_whatever_else_is_declared(lay, job) -> None:
    folder = lay("stage=basic", ends=[3])
    chosen = choose(*job("stage=cooldown", "model.num_layers=9", f"run={folder.path}"))
    assert chosen.folder.path == folder.path
    assert chosen.config.model.num_layers == 1, "the model is that of the run's own record"


def test_what_is_no_run_or_has_no_checkpoint_or_was_never_trained_is_refused(lay, job, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"is not the directory of a run"):
        choose(*job("stage=basic", f"run={tmp_path}"))
    with pytest.raises(ConfigError, match=r"stage=basic of variant=slimpajama has not been trained"):
        find_run(*job("stage=basic"))
    lay("stage=basic", ends=[])
    with pytest.raises(ConfigError, match=r"has no checkpoint yet"):
        choose(*job("stage=basic"))
    with pytest.raises(ConfigError, match=r"has not been trained: no .*; name one that stands: run=.*basic-"):
        choose(*job("stage=basic", "seed=5"))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.json", "manifest.json"])
def test_a_changed_byte_in_any_file_is_damage(lay, job, name: str) -> None:
    folder = lay("stage=basic")
    path = folder.checkpoint(folder.checkpoint_tokens()[-1]) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamageError, match=name):
        choose(*job("stage=basic"))


def test_jobs_of_a_sweep_come_as_a_tree_each_run_once(lay, job) -> None:
    both = ("+variant=chinese", "+variant=math_code")
    basic = lay("stage=basic", both[0])
    leaves = [lay(f"stage={stage}", variant) for variant in both for stage in ("continual", "cooldown")]
    jobs = [job(f"stage={stage}", variant) for stage in ("cooldown", "basic", "continual") for variant in both]
    found = [chosen.name for chosen in choose_all(jobs)]
    names = [folder.path.name for folder in leaves]
    assert found == [basic.path.name, *names]


def test_the_weights_are_those_that_were_written_and_only_views_of_the_file(lay, job) -> None:
    folder = lay("stage=basic")
    chosen = choose(*job("stage=basic"))
    found, written = read_weights(chosen), dict(random_weights(chosen.config, folder.checkpoint_tokens()[-1]))
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], written[name]) for name in written)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


def test_the_tokenizer_is_found_by_its_digest_where_it_is_now_or_where_it_was(
    compose, settings, job, tmp_path: Path
) -> None:
    then, now = tmp_path / "then.model", tmp_path / "now.model"
    then.write_bytes(b"pieces")
    path = compose(*settings, "stage=basic", f"tokenizer.path={then}")
    found = take_inventory(path)
    folder = lay_run(path, Inventory(found.corpora, sha256(b"pieces").hexdigest()))
    chosen = choose(*job(f"run={folder.path}", f"tokenizer.path={now}"))
    assert tokenizer_file(chosen) == then
    then.rename(now)
    assert tokenizer_file(chosen) == now
    now.write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"now.model is another.*then.model is missing; set tokenizer.path"):
        tokenizer_file(chosen)


def test_a_choice_needs_no_torch(lay, loaded_by) -> None:
    folder = lay("stage=basic")
    statement = (
        "from pathlib import Path; from tinyllama.checkpoint.choice import choose_of;"
        "from tinyllama.checkpoint.layout import RunFolder; from tinyllama.config.load import from_yaml;"
        f"folder = RunFolder(Path({str(folder.path)!r}));"
        f"assert choose_of(folder, from_yaml(folder.config)).name == {folder.path.name!r}"
    )
    assert loaded_by(statement, "torch") == []
