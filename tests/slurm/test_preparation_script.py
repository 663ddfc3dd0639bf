"""The text for sbatch of the jobs that prepare a corpus: golden files, read by people; and that bash understands it."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllama.config.schema import ClusterConfig, ContainerConfig, ContainerKind, SlurmConfig
from tinyllama.slurm.preparation_script import PreparationSpec, preparation_script

GOLDEN = Path(__file__).parents[1] / "golden" / "sbatch_preparation"

JOIN = PreparationSpec(
    corpus="slimpajama",
    folder=Path("/shared/data/preparation/llama2-2048/slimpajama"),
    data=Path("/shared/data"),
    code=Path("/shared/data/.code/ba9876543210"),
    directory=Path("/shared/project"),
    python="/shared/project/.venv/bin/python",
    depends_on="41",
)
ARRAY = replace(JOIN, indices=(0, 1, 3), shares=4, depends_on=None)
CPU = ClusterConfig(name="cpu", micro_batch=4, slurm=SlurmConfig(partition="cpu", cpus_per_rank=32, time_hours=4))
GPU = ClusterConfig(
    name="gpu", nodes=16, processes=4, micro_batch=7, gpu="A100",
    slurm=SlurmConfig(setup=["module load cuda"], srun_options={"cpu-bind": "none", "mpi": None}, max_failures=1),
)  # fmt: skip


def container(kind: ContainerKind, image: str) -> ClusterConfig:
    return replace(CPU, slurm=SlurmConfig(container=ContainerConfig(kind=kind, image=image, mounts=["/raw:/raw"])))


CASES = {
    "array": (CPU, ARRAY),
    "join": (CPU, JOIN),
    "of_a_cluster_with_gpus": (GPU, ARRAY),
    "pyxis": (container(ContainerKind.pyxis, "docker://python:3.11"), replace(ARRAY, python="python3")),
    "apptainer": (container(ContainerKind.apptainer, "/shared/images/it is.sif"), replace(JOIN, python="python3")),
    "spaces": (CPU, replace(ARRAY, folder=Path("/shared/my data/it's"), directory=Path("/shared/my project"))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_golden_one(name):
    assert preparation_script(*CASES[name]) == (GOLDEN / f"{name}.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_bash_understands_the_text(name):
    text = preparation_script(*CASES[name])
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(name):
    text = preparation_script(*CASES[name])
    checked = subprocess.run(
        ["shellcheck", "--shell=bash", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.stdout == ""
