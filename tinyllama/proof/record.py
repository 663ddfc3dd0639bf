"""A run and its ancestors as their own directories tell them, and the plan that follows from that alone.

What conf/ says today does not matter, nor whether the data is still there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyllama.checkpoint.corpora import CorpusRecord, read_corpora
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.standing import read_identity
from tinyllama.config.load import from_yaml
from tinyllama.config.schema import RunConfig
from tinyllama.errors import DamageError
from tinyllama.planning.corpora import HfModel, Inventory
from tinyllama.planning.identity import differences
from tinyllama.planning.plan import RunPlan, make_plan, target_weights
from tinyllama.proof.examination import Examination

_HF = "hf:"


@dataclass(frozen=True)
class Record:
    """A run by its own record."""

    folder: RunFolder
    config: RunConfig
    corpora: Mapping[str, CorpusRecord]
    plan: RunPlan

    @property
    def name(self) -> str:
        return self.folder.path.name


def read_records(folder: RunFolder, examination: Examination) -> tuple[Record, ...]:
    """The run and its ancestors, the root first; up to the first that is not what it says, whose check has failed."""
    folders: list[RunFolder] = []
    records: list[Record] = []
    if not examination.check("lineage", lambda: _find_lineage(folder, folders)):
        return ()
    for each in folders:
        if not examination.check(f"{each.path.name}: identity", lambda: _read_record(each, records)):  # noqa: B023
            break
    return tuple(records)


def _find_lineage(folder: RunFolder, folders: list[RunFolder]) -> str:
    """Fill `folders` with the run's ancestors and itself, the root first."""
    folders.append(folder)
    digest, meaning = read_identity(folder)
    while (parent := meaning.get("parent")) is not None and not parent.startswith(_HF):
        found = sorted(folder.path.parent.glob(f"*-{parent[:12]}"))
        if not found:
            raise DamageError(
                f"{folders[0].path.name} continues run {parent[:12]}, which is not in {folder.path.parent}; "
                f"bring its directory back"
            )
        folders.insert(0, RunFolder(found[0]))
        digest, meaning = read_identity(folders[0])
        if digest != parent:
            raise DamageError(f"{found[0]} is run {digest}, not {parent}, which {folders[1].path.name} continues")
    start = f"Hugging Face weights {parent.removeprefix(_HF)[:12]}" if parent else "random weights"
    return f"from {start}: {' -> '.join(each.path.name for each in folders)}"


def _read_record(folder: RunFolder, records: list[Record]) -> str:
    """Plan a run anew from its record and those of its ancestors, and append it."""
    digest, meaning = read_identity(folder)
    config, corpora = from_yaml(folder.config), read_corpora(folder.corpora)
    path = [*(record.config for record in records), config]
    known = {name: each for record in records for name, each in record.corpora.items()} | corpora
    if unknown := sorted(set(target_weights(config)) - set(known)):
        raise DamageError(f"{folder.corpora} says nothing of {unknown[0]}, which {folder.config} mixes in")
    for name, each in corpora.items():
        if each.seq_len != config.packing.seq_len:
            raise DamageError(
                f"{folder.corpora} has samples of {each.seq_len} tokens of {name}, {folder.config} of "
                f"packing.seq_len={config.packing.seq_len}"
            )
    plan = make_plan(path, _inventory(path, known, meaning["parent"] if not records else None))
    if plan.digest != digest:
        first = next(iter(differences(meaning, plan.meaning)))
        raise DamageError(
            f"{folder.config} and {folder.corpora.name} are not those of {folder.identity.name}: {first.field} is "
            f"{first.new} there, {first.old} here"
        )
    records.append(Record(folder, config, corpora, plan))
    return f"configuration and corpora give digest {digest[:12]}, by which directory and identity.json are named"


def _inventory(path: Sequence[RunConfig], corpora: Mapping[str, CorpusRecord], parent: str | None) -> Inventory:
    """What the plan was made from."""
    tokenizer = next((each.tokenizer_digest for each in corpora.values()), None)
    origin = HfModel(path[0].stage.origin or "", parent.removeprefix(_HF), ()) if parent else None
    return Inventory({name: each.corpus(name) for name, each in corpora.items()}, tokenizer, origin)
