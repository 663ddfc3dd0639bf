"""How many nodes the local launcher lets work at once."""

import os

import pytest

from hydra_plugins.tinyllama_launchers._local import jobs_at_a_time

GPUS = ("4", "5", "6", "7")


@pytest.fixture
def wanting(tree, compose, monkeypatch):
    """wanting(1, 2): nodes of so many ranks; 0 leaves it to what is visible."""

    def build(*ranks):
        return tree(
            *((f"stage.tokens={100 + number}K", "cluster.micro_batch=1", f"cluster.processes={count or 'null'}")
              for number, count in enumerate(ranks))
        )  # fmt: skip

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(GPUS))
    return build


@pytest.mark.parametrize(
    "ranks, limit, jobs",
    [
        ((1, 1, 1, 1, 1, 1), None, 4),
        ((1, 1, 1, 1, 1, 1), 3, 3),
        ((1, 1, 1, 1, 1, 1), 9, 4),
        ((2, 2, 2), None, 2),
        ((4, 1, 1, 2), None, 3),
        ((0, 0), None, 1),
        ((0, 0), 2, 1),
        ((1,), None, 1),
    ],
)
def test_as_many_run_at_once_as_there_are_gpus_for(wanting, ranks, limit, jobs):
    assert jobs_at_a_time(wanting(*ranks), GPUS, limit) == jobs


def test_without_gpus_as_many_run_at_once_as_the_cores_serve_or_as_was_said(wanting):
    cores = len(os.sched_getaffinity(0))
    nodes = wanting(*[1] * (cores + 3))
    assert jobs_at_a_time(nodes, ()) == cores
    assert jobs_at_a_time(nodes, (), cores + 2) == cores + 2
    assert jobs_at_a_time(nodes[:1], (), cores + 2) == 1
    assert jobs_at_a_time(wanting(2 * cores, 1), ()) == 1
    assert jobs_at_a_time((), ()) == 1
