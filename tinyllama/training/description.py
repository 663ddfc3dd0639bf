"""The files that say what a run is, written before its first step."""

import json
from collections.abc import Sequence

from tinyllama.checkpoint.corpora import write_corpora
from tinyllama.checkpoint.files import write_durably, write_sealed
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.load import to_yaml
from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import corpus_folders
from tinyllama.planning.document import plan_document
from tinyllama.planning.plan import RunPlan


def describe(config: RunConfig, plan: RunPlan, variants: Sequence[str]) -> None:
    """identity.json last of all: with it the run stands."""
    folder = RunFolder.of(config.paths.runs, plan)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_plan(config, plan, variants, Status.partial)
    write_durably(folder.config, to_yaml(config))
    write_corpora(folder.corpora, corpus_folders(config, plan.corpora))
    identity = {"digest": plan.digest, "meaning": plan.meaning}
    write_durably(folder.identity, json.dumps(identity, indent=1) + "\n")


def write_plan(config: RunConfig, plan: RunPlan, variants: Sequence[str], status: Status) -> None:
    """plan.json: the node of `plan format=json`."""
    folder = RunFolder.of(config.paths.runs, plan)
    write_sealed(folder.plan, plan_document(plan, config, variants, status.value, str(folder.path)))
