"""The answer of a launcher to Hydra."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus


def completed(sweep: Sequence[Sequence[str]]) -> list[JobReturn]:
    """The results of jobs that all ended well."""
    return [JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=None) for overrides in sweep]
