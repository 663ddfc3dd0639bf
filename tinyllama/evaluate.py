"""Ask models questions (lm-eval) and measure their loss on held-out text: the overrides of train, sweeps without -m.

    python -m tinyllama.evaluate +variant=standard,math_code,chinese stage=basic,cooldown

Each run once, at its newest checkpoint or at_tokens; run=DIRECTORY names another run, or a folder in Hugging Face's
layout. Settings: evaluation.tasks (suites, tasks of lm-eval, held_out, perplexity), evaluation.folder (tasks of your
own), evaluation.limit, evaluation.models (folders or runs to compare with). Needs the extra `eval`.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinyllama.checkpoint.choice import choose_all, hugging_face_folder
from tinyllama.config.app import family_command
from tinyllama.config.checks import check_evaluation
from tinyllama.config.schema import Format, RunConfig

if TYPE_CHECKING:
    from tinyllama.evaluation.models import Subject
    from tinyllama.evaluation.record import Evaluation
    from tinyllama.evaluation.table import Column


@family_command
def main(jobs: list[tuple[RunConfig, list[str]]]) -> None:
    config, _ = jobs[0]
    check_evaluation(config.evaluation)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tinyllama.lineage").setLevel(logging.WARNING)
    folders = [folder for config, _ in jobs if (folder := hugging_face_folder(config)) is not None]
    chosen = choose_all([job for job in jobs if hugging_face_folder(job[0]) is None])
    from tinyllama.evaluation.models import find_models
    from tinyllama.evaluation.session import evaluate_all

    models = find_models(chosen, folders, config)
    evaluations = evaluate_all(models, config, shown=sys.stderr.isatty())
    columns = _columns(models, evaluations)
    if config.format is Format.json:
        documents = [_document(column) for column in columns]
        print(json.dumps(documents[0] if len(documents) == 1 else {"models": documents}))
    else:
        _print(columns)


def _columns(models: "Sequence[Subject]", evaluations: "Sequence[Evaluation]") -> "list[Column]":
    """Each with its differences to the nearest ancestor that was asked the same, now or before."""
    from tinyllama.evaluation.models import OwnModel
    from tinyllama.evaluation.record import ancestors, differences, read_evaluation
    from tinyllama.evaluation.table import Column

    columns = []
    for model, evaluation in zip(models, evaluations, strict=True):
        column = Column(evaluation, None, {})
        for ancestor in ancestors(model.chosen.folder) if isinstance(model, OwnModel) else ():
            before = read_evaluation(ancestor.folder.evaluation(ancestor.tokens))
            if before is not None and (gained := differences(evaluation.tasks, before.tasks)):
                column = Column(evaluation, ancestor, gained)
                break
        columns.append(column)
    return columns


def _document(column: "Column") -> Mapping[str, Any]:
    ancestor = column.ancestor
    parent = {"model": ancestor.name, "differences": dict(column.gained)} if ancestor else None
    return column.evaluation.document | {"parent": parent}


def _print(columns: "Sequence[Column]") -> None:
    from tinyllama.evaluation.table import comparison, perplexities
    from tinyllama.reporting.console import console

    out = console(sys.stdout)
    if any(column.evaluation.tasks for column in columns):
        out.print(comparison(columns))
    if any(column.evaluation.perplexity for column in columns):
        print()
        out.print(perplexities([column.evaluation for column in columns]))


if __name__ == "__main__":
    main()
