"""The cluster of all tests here, and the small family's data."""

import os
from collections.abc import Iterator

import pytest

from tests.end_to_end.conftest import data, settings, small  # noqa: F401
from tests.slurm.cluster import Missing, Slurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real SLURM; where there can be none the tests are skipped, unless TINYLLAMA_REQUIRE_SLURM is set."""
    cluster = Slurm(shared=tmp_path_factory.getbasetemp())
    try:
        cluster.start()
    except Missing as reason:
        if os.environ.get("TINYLLAMA_REQUIRE_SLURM"):
            raise
        pytest.skip(f"no SLURM here: {reason}")
    yield cluster
    cluster.stop()
