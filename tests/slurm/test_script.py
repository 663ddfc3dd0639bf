"""The text for sbatch: golden files, read by people; and that bash and SLURM understand it."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllama.config.schema import ClusterConfig, ContainerConfig, ContainerKind, SlurmConfig
from tinyllama.slurm.script import JobSpec, run_script

GOLDEN = Path(__file__).parents[1] / "golden" / "sbatch"

JOB = JobSpec(
    name="continual-0123456789ab",
    run=Path("/shared/runs/tinyllama_v1.1/continual-0123456789ab"),
    code=Path("/shared/runs/tinyllama_v1.1/.code/ba9876543210"),
    directory=Path("/shared/project"),
    python="/shared/project/.venv/bin/python",
    paths=(Path("/shared/data"),),
    needs=Path("/shared/runs/tinyllama_v1.1/basic-0123456789ab/DONE"),
    depends_on="41",
)
ROOT_JOB = replace(JOB, needs=None, depends_on=None)
CPU = ClusterConfig(name="cpu", processes=2, micro_batch=4)
A100 = ClusterConfig(name="a100_40g_x4", nodes=16, processes=4, micro_batch=7, gpu="A100-SXM4-40GB")
EVERYTHING = SlurmConfig(
    partition="gpu,gpu-long", account="llm-7", qos="high", time_hours=36.5, notice_seconds=600, gpus_per_node=8,
    cpus_per_rank=12, memory_gib=480.5, exclusive=True, constraint="a100&nvlink",
    options={"reservation": "launch day", "no-kill": True, "mail-type": None, "nodelist": ["n1", "n2"]},
    srun_options={"cpu-bind": "none", "mpi": "none"},
    setup=["module load cuda/12.4", 'export NCCL_SOCKET_IFNAME="ib0"'], python="/opt/py thon/bin/python",
    max_failures=5, max_requeues=20,
)  # fmt: skip


def container(kind: ContainerKind, image: str) -> SlurmConfig:
    return SlurmConfig(container=ContainerConfig(kind=kind, image=image, mounts=["/scratch:/scratch"]))


CASES = {
    "cpu_root": (CPU, ROOT_JOB),
    "cpu_child": (CPU, JOB),
    "fork": (CPU, replace(JOB, needs=JOB.run.parent / "basic-0123456789ab" / "checkpoints" / "001200000000000")),
    "a100_40g_x4": (A100, ROOT_JOB),
    "everything": (replace(A100, slurm=EVERYTHING), JOB),
    "pyxis": (
        replace(A100, slurm=container(ContainerKind.pyxis, "docker://nvcr.io#nvidia/pytorch:26.01-py3")),
        replace(ROOT_JOB, python="python3"),
    ),
    "apptainer": (
        replace(A100, slurm=container(ContainerKind.apptainer, "/shared/images/torch.sif")),
        replace(ROOT_JOB, python="python3"),
    ),
    "spaces": (CPU, replace(ROOT_JOB, run=Path("/shared/my runs/it's/basic-0"), directory=Path("/shared/my project"))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_golden_one(name: str) -> None:
    assert run_script(*CASES[name]) == (GOLDEN / f"{name}.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_bash_understands_the_text(name: str) -> None:
    checked = subprocess.run(
        ["bash", "-n"], input=run_script(*CASES[name]), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_warns_of_nothing(name: str) -> None:
    checked = subprocess.run(
        ["shellcheck", "--severity=warning", "--shell=bash", "-"],
        input=run_script(*CASES[name]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == ""


@pytest.mark.parametrize(
    "hours, said",
    [(24, "1-00:00:00"), (1.5, "01:30:00"), (1 / 60, "00:01:00"), (0.001, "00:01:00"), (36.51, "1-12:31:00")],
)
def test_a_time_limit_is_a_whole_number_of_minutes(hours: float, said: str) -> None:
    cluster = replace(CPU, slurm=SlurmConfig(time_hours=hours))
    assert f"#SBATCH --time={said}\n" in run_script(cluster, ROOT_JOB)


@pytest.mark.parametrize("gpu, asked, said", [(None, None, None), ("A100", None, 4), ("A100", 0, None), (None, 2, 2)])
def test_gpus_are_asked_for_by_number_or_one_per_rank(gpu: str | None, asked: int | None, said: int | None) -> None:
    cluster = replace(A100, gpu=gpu, slurm=SlurmConfig(gpus_per_node=asked))
    lines = [line for line in run_script(cluster, ROOT_JOB).splitlines() if "gpus-per-node" in line]
    assert lines == ([f"#SBATCH --gpus-per-node={said}"] if said else [])
