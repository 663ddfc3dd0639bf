"""Places of processes and counting GPUs, both from what the surroundings say."""

from pathlib import Path

import pytest

from tinyllama.world import World, visible_gpus


def test_a_process_without_a_launcher_is_alone() -> None:
    assert World.from_environment({}) == World(rank=0, size=1, local_rank=0, local_size=1)


def test_the_place_is_the_one_the_launcher_gave() -> None:
    given = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}
    assert World.from_environment(given) == World(rank=6, size=8, local_rank=2, local_size=4)


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
    ],
)
def test_gpus_are_counted_by_their_device_files_unless_some_are_chosen(
    tmp_path: Path, environ: dict[str, str], expected: int
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "sda1"):
        (tmp_path / name).touch()
    assert visible_gpus(environ, tmp_path) == expected
