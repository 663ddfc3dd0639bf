"""Places of processes and counting GPUs, both from what the surroundings say."""

from pathlib import Path

import pytest

from tinyllama.world import World, given_ranks, visible_gpus


def test_a_process_without_a_launcher_is_alone() -> None:
    assert World.from_environment({}) == World(rank=0, size=1, local_rank=0, local_size=1)


def test_the_place_is_the_one_the_launcher_gave() -> None:
    given = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}
    assert World.from_environment(given) == World(rank=6, size=8, local_rank=2, local_size=4)


def srun(rank: int, local_rank: int, node: int, tasks: int, per_node: str) -> dict[str, str]:
    """What a task of srun finds in its environment, beside what the script of its job finds there too."""
    return {
        **SCRIPT, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local_rank), "SLURM_NODEID": str(node),
        "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_TASKS_PER_NODE": per_node,
    }  # fmt: skip


SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "11", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    "environ, expected",
    [
        (srun(6, 2, 1, 11, "4(x2),3"), World(rank=6, size=11, local_rank=2, local_size=4)),
        (srun(9, 1, 2, 11, "4(x2),3"), World(rank=9, size=11, local_rank=1, local_size=3)),
        (srun(1, 0, 1, 2, "1(x2)"), World(rank=1, size=2, local_rank=0, local_size=1)),
        (srun(0, 0, 0, 1, "1"), World(rank=0, size=1, local_rank=0, local_size=1)),
    ],
)
def test_the_place_of_a_task_of_srun_is_told_by_its_step(environ: dict[str, str], expected: World) -> None:
    assert World.from_environment(environ) == expected
    assert given_ranks(environ) == (expected.size if expected.size > 1 else None)


def test_the_script_of_a_job_is_no_rank_of_it() -> None:
    assert World.from_environment(SCRIPT) == World()
    assert given_ranks(SCRIPT) is None


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
