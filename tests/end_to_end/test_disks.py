"""Disks that are full or too small: a run goes on or stops in order, and nothing that was good is lost."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.end_to_end.conftest import only_run
from tests.end_to_end.test_runs import LONGER, wait_for_steps
from tinyllama.checkpoint.files import free_bytes

pytestmark = pytest.mark.slow

SIZE = "6m"
"""Of the disk; a checkpoint of the small family weighs about half a mebibyte."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, where the runs are to be."""
    folder = tmp_path / "runs"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Another's file on the disk, which grows until so many bytes are free."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while free_bytes(disk) > leave:
            file.write(bytes(4096))
    return path


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("."))


LONG = [
    "stage=basic", "stage.tokens=103K", "schedule.horizon_tokens=103K", "checkpoint.every_tokens=5K",
    "validation.every_tokens=1M",
]  # fmt: skip
"""100 steps, a checkpoint every five."""


def test_a_run_goes_on_while_the_disk_has_no_room_for_checkpoints_and_saves_when_it_has(begin, small, disk):
    process = begin("train", *small, *LONG)
    for step in range(20, 45):
        wait_for_steps(process, disk, step)
        filler = fill(disk, leave=300_000)  # room for the journals
    assert int(checkpoints(only_run(disk))[-1]) < 30 * 1024
    filler.unlink()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "could not be written: No space left on device in" in err and "remove what that disk need not hold" in err
    assert "tried again in 5 s, or with the next one" in err and "Traceback" not in err


def test_a_run_on_a_full_disk_stops_in_order_and_goes_on_from_its_last_good_checkpoint(begin, small, disk, shell):
    settings = [*small, *LONG]
    process = begin("train", *settings)
    wait_for_steps(process, disk, 20)
    filler = fill(disk)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 3, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert "No space left on device in" in last and "remove what that disk need not hold" in last
    kept = checkpoints(only_run(disk))
    assert kept
    filler.unlink()
    resumed = shell("train", *settings)
    assert resumed.code == 0, resumed.err
    assert "goes on after step" in resumed.err
    verified = shell("verify", *settings)
    assert verified.code == 0, verified.out + verified.err


def test_a_disk_that_cannot_hold_two_checkpoints_is_refused_before_anything_is_spent(small, disk, shell):
    fill(disk, leave=700_000)
    result = shell("train", *small, *LONGER)
    assert result.code == 2
    assert f"paths.runs={disk} has" in result.err and "for 2 checkpoints, so that one is always whole" in result.err
    assert not (disk / "demo").exists()
