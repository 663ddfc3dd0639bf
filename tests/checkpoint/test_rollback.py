"""Going back: to a sound checkpoint, and without a way forward again."""

import pytest

from tinyllama.checkpoint.files import describe
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import Checkpoint
from tinyllama.checkpoint.placing import place
from tinyllama.checkpoint.rollback import give_up_later, newest_until
from tinyllama.planning.progress import Progress
from tinyllama.world import World


@pytest.fixture
def folder(tmp_path):
    """A run with checkpoints of steps 3, 6, 9 and 12."""
    folder = RunFolder(tmp_path / "basic-0123")
    for step in (3, 6, 9, 12):
        aside = folder.writing(10 * step)
        aside.mkdir(parents=True)
        (aside / "weights").write_bytes(bytes([step]))
        files = {"weights": describe(aside / "weights")}
        place(Checkpoint(aside, "digest", Progress(step, step, 10 * step), "c" * 64, 1, {}, files), folder)
    return folder


def test_the_newest_sound_checkpoint_up_to_a_position_is_found(folder):
    assert newest_until(folder, "digest", 95, World()).progress.step == 9
    assert newest_until(folder, "digest", 90, World()).progress.step == 9
    (folder.checkpoint(90) / "weights").write_bytes(b"?")
    assert newest_until(folder, "digest", 95, World()).progress.step == 6
    assert newest_until(folder, "digest", 29, World()) is None


def test_what_comes_after_is_gone_and_not_missed(folder):
    give_up_later(folder, newest_until(folder, "digest", 60, World()), World())
    assert folder.checkpoint_tokens() == [30, 60]
    assert folder.leftovers() == []
    assert int(folder.latest.read_text()) == 60
