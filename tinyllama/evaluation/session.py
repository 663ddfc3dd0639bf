"""Every model asked every question, and its losses; kept in the runs' directories and in the tracking store."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinyllama import __version__
from tinyllama.checkpoint.choice import Chosen
from tinyllama.checkpoint.files import why_not_written
from tinyllama.checkpoint.standing import recorded_variants
from tinyllama.config.schema import RunConfig
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError
from tinyllama.evaluation.harness import Questions, Score, whole_lm
from tinyllama.evaluation.held_out import held_out_corpora, make_tasks
from tinyllama.evaluation.models import Loaded, OwnModel, Subject
from tinyllama.evaluation.record import Evaluation
from tinyllama.evaluation.suites import HELD_OUT, PERPLEXITY, benchmarks
from tinyllama.evaluation.table import markdown
from tinyllama.lineage import RunRecord, record_evaluations, record_of
from tinyllama.proof.examination import Examination
from tinyllama.proof.record import read_records

log = logging.getLogger(__name__)


def evaluate_all(models: Sequence[Subject], config: RunConfig, shown: bool) -> list[Evaluation]:
    """What becomes known of each model, together with what was known of the same checkpoint before.

    Args:
        shown: with progress bars on standard error.

    Raises:
        ConfigError: a task is not known or its data cannot be had; nothing was evaluated then.
    """
    questions = ask_for(config)
    if questions is None and not held_out_corpora(config):
        raise ConfigError(
            f"evaluation.tasks={PERPLEXITY} needs held-out samples, and none are below paths.data={config.paths.data}; "
            f"prepare the corpora, or name tasks"
        )
    evaluations = [_evaluate(model, questions, config, shown) for model in models]
    runs = (model.chosen for model in models if isinstance(model, OwnModel))
    record_evaluations(config.tracking, Path(config.paths.runs), [record for run in runs if (record := _record(run))])
    return evaluations


def ask_for(config: RunConfig, generates: bool = True) -> Questions | None:
    """The tasks that `evaluation.tasks` names, their data loaded; None if there are none.

    Raises:
        ConfigError: a task is not known, its data cannot be had, or it needs what is not allowed.
    """
    settings, folders = config.evaluation, []
    made: dict[str, Path] = {}
    if any(name == HELD_OUT or name.startswith(f"{HELD_OUT}_") for name in settings.tasks):
        made = make_tasks(held_out_corpora(config), Path(config.paths.data), Tokenizer.load(config.tokenizer))
    if HELD_OUT in settings.tasks and not made:
        raise ConfigError(
            f"evaluation.tasks={HELD_OUT} needs held-out documents, and there are none below "
            f"paths.data={config.paths.data}; prepare the corpora with a larger validation.fraction"
        )
    if settings.folder is not None:
        folders.append(Path(settings.folder).expanduser().absolute())
        if not folders[0].is_dir():
            raise ConfigError(f"evaluation.folder={settings.folder} is no folder")
    asked = benchmarks(settings.tasks, list(made))
    folders += [folder.absolute() for folder in made.values()]
    return Questions(asked, folders, settings.run_code, generates) if asked else None


def _evaluate(model: Subject, questions: Questions | None, config: RunConfig, shown: bool) -> Evaluation:
    settings, found = config.evaluation, model.evaluation()
    log.info("evaluating %s", found.name)
    loaded = model.load()
    if questions is not None:
        lm = whole_lm(loaded.model, loaded.tokenizer, settings.batch_size)
        found.tasks = task_entries(questions.ask(lm, settings.limit, shown), model.published)
    if PERPLEXITY in settings.tasks:
        found.perplexity = _perplexity(model, loaded, found.name, settings.batch_size)
    packages = {name: version(name) for name in ("lm_eval", "torch", "transformers")}
    found.versions = {"tinyllama": __version__, **packages}
    if isinstance(model, OwnModel):
        _keep(model.chosen, found)
    return found


def task_entries(scores: Mapping[str, Score], published: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """As documents have them."""
    return {name: asdict(score) | {"published": published.get(name)} for name, score in scores.items()}


def _perplexity(model: Subject, loaded: Loaded, name: str, batch: int) -> dict[str, dict[str, float | int]]:
    losses = model.losses(loaded, batch)
    if not losses:
        log.warning("%s: no held-out samples of its corpora are on this machine, so there is no perplexity", name)
    return {corpus: loss.document for corpus, loss in losses.items()}


def _keep(chosen: Chosen, found: Evaluation) -> None:
    """In the run's directory. If that fails it costs a warning: the numbers are printed."""
    path = chosen.folder.evaluation(chosen.tokens)
    try:
        found.merged_into(path)
        path.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    except OSError as error:
        log.warning("what was found of %s could not be kept: %s", found.name, why_not_written(error, path.parent))


def _record(chosen: Chosen) -> RunRecord | None:
    """As tracking stores know the run; None, and a warning, where what it was made of cannot be told."""
    records = read_records(chosen.folder, Examination())
    if not records or records[-1].folder != chosen.folder:
        log.warning("%s is not recorded in tracking: its record, or that of an ancestor, is missing", chosen.name)
        return None
    return record_of(
        chosen.config,
        records[-1].plan,
        recorded_variants(chosen.folder),
        chosen.folder,
        ranks=chosen.checkpoint.world_size,
        first_step=chosen.checkpoint.progress.step,
        adopted_from=(chosen.checkpoint.adopted or {}).get("path"),
    )
