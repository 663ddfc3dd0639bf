"""Trees without data, for launchers whose nodes do not train."""

from dataclasses import replace
from pathlib import Path

import pytest

from tinyllama.config.location import expose_launchers
from tinyllama.config.schema import RunConfig
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, grow

expose_launchers()  # before the tests import them

SIZES = {"slimpajama": (64,) * 40, "starcoder": (64,) * 9, "proof_pile_2": (64,) * 7, "skypile": (50,) * 21}
PREPARED = Inventory({name: Corpus(name, f"of {name}", sizes) for name, sizes in SIZES.items()}, "of the tokenizer")


@pytest.fixture
def tree(compose, tmp_path):
    """tree(("stage=basic",), ("+variant=chinese", "stage=continual"), ...) at demo scale, its runs in tmp_path."""

    def build(*jobs):
        paths = {job: [_in(tmp_path, config) for config in compose("+scale=demo", *job)] for job in jobs}
        return grow(Job(job, tuple(path), make_plan(path, PREPARED)) for job, path in paths.items())

    return build


def _in(runs: Path, config: RunConfig) -> RunConfig:
    """Not by an override, so that what is composed serves all tests."""
    return replace(config, paths=replace(config.paths, runs=str(runs)))
