"""A family from what the tracking store has of it."""

import json
from collections.abc import Iterable, Mapping

import numpy as np

from tinyllama.config.schema import TrackingConfig
from tinyllama.errors import ConfigError, DamageError
from tinyllama.lineage.record import History
from tinyllama.reporting.pages.family import Family, Run, Steps

LACKS = (
    "The tracking store does not tell which steps were skipped and why, nor which checkpoints stand on disk; "
    "where log_every_steps is above 1 it has one step in so many."
)


def runs_of_store(family: str, histories: Iterable[History], tracking: TrackingConfig) -> Family:
    """The runs of a family as the store has them.

    Raises:
        ConfigError: there is none.
        DamageError: the store has one without the files that say what it is.
    """
    runs = [_run_of(each) for each in histories]
    if not runs:
        raise ConfigError(
            f"family={family} has no runs in the store of tracking.uri={tracking.uri or 'null (beside the runs)'}; "
            f"name another family or store, or take report.source=runs"
        )
    return Family.of(family, runs, "the tracking store alone", LACKS)


def _run_of(history: History) -> Run:
    files = {name: _parse(name, text, history) for name, text in history.files.items()}
    for name in ("identity.json", "plan.json"):
        if name not in files:
            raise DamageError(f"the tracking store has no {name} of run {history.name}; take report.source=runs")
    identity = files["identity.json"]
    ranks = history.tags.get("ranks")
    return Run(
        digest=identity["digest"],
        meaning=identity["meaning"],
        plan=files["plan.json"],
        finished=history.status == "FINISHED",
        steps=_steps(history),
        ranks=int(ranks) if ranks is not None else None,
        evaluations={int(name[12:-5]): each for name, each in files.items() if name.startswith("evaluations/")},
        place=f"MLflow run {history.run_id}",
    )


def _steps(history: History) -> Steps:
    """One row for each step that has its tokens; the other metrics where they belong."""
    empty = np.empty((0, 3))
    tokens = history.metrics.get("tokens", empty)
    step = tokens[:, 0].astype(np.int64)
    values = {}
    for name, points in history.metrics.items():
        known = points[np.isin(points[:, 0], step)]
        values[name] = np.full(len(step), np.nan)
        values[name][np.searchsorted(step, known[:, 0])] = known[:, 2]
    seconds = np.where(tokens[:, 1] > 0, tokens[:, 1] / 1000, np.nan)
    return Steps(step, tokens[:, 2].astype(np.int64), seconds, values)


def _parse(name: str, text: str, history: History) -> Mapping:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamageError(f"{name} of run {history.name} in the tracking store cannot be read ({error})") from error
