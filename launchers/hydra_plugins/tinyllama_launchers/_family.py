"""From a sweep's jobs to the nodes of the family tree."""

from collections.abc import Sequence

from tinyllama.config.app import compose_path, setting_of
from tinyllama.config.checks import check_path
from tinyllama.config.stages import continued_stages, declared_parent
from tinyllama.data.inventory import take_inventory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, Node, grow


def family_of(sweep: Sequence[Sequence[str]]) -> tuple[Node, ...]:
    """The tree of all jobs of a sweep, each given by its overrides.

    Raises:
        ConfigError: a job's settings are wrong.
    """
    jobs, continued = [], continued_stages()
    for overrides in with_ancestors_settings(sweep):
        path = compose_path(overrides)
        check_path(path)
        plan = make_plan(path, take_inventory(path))
        jobs.append(Job(tuple(overrides), path, plan, plan.stage in continued))
    return grow(jobs)


def with_ancestors_settings(sweep: Sequence[Sequence[str]]) -> list[list[str]]:
    """Tell each job what the sweep says of the other stages of its path.

    `stage=basic,continual stage.tokens=1M` sets the tokens of both; continual alone would reckon with conf/'s basic.
    `stage=continual,cooldown parent=hf:FOLDER` replaces the parent of continual, which the sweep lacks, and not
    cooldown's.
    """
    families: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for overrides in sweep:
        families.setdefault(_without_stage(overrides), []).append(overrides)
    jobs = []
    for overrides in sweep:
        siblings = families[_without_stage(overrides)]
        said = [
            f"++stages.{stage}.{setting_of(text).removeprefix('stage.')}={text.split('=', 1)[1]}"
            for other in siblings
            if (stage := _stage(other)) and stage != _stage(overrides)
            for text in other
            if setting_of(text).startswith("stage.")
        ]
        jobs.append([*_with_parent(overrides, {_stage(other) for other in siblings}), *said])
    return jobs


def _with_parent(overrides: Sequence[str], stages: set[str | None]) -> list[str]:
    """The same, `parent` said of those stages whose own parent is not one of them."""
    given = [text.partition("=")[2] for text in overrides if setting_of(text) == "parent"]
    heads = [stage for stage in stages if stage and declared_parent(stage) not in stages] if given else []
    if _stage(overrides) in [None, *heads]:
        return list(overrides)
    others = [text for text in overrides if setting_of(text) != "parent"]
    return [*others, *(f"++stages.{head}.parent={given[-1]}" for head in sorted(heads))]


def _without_stage(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(text for text in overrides if setting_of(text).split(".")[0] != "stage"))


def _stage(overrides: Sequence[str]) -> str | None:
    return next((text.split("=", 1)[1] for text in overrides if setting_of(text) == "stage"), None)
