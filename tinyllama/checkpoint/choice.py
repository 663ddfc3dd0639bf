"""Which run and which of its checkpoints a command is about, and what is read of it. No torch before the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllama.checkpoint.files import describe
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.checkpoint.manifest import Checkpoint, read_checkpoint
from tinyllama.checkpoint.standing import read_identity
from tinyllama.config.app import compose_path
from tinyllama.config.load import from_yaml
from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import take_inventory
from tinyllama.errors import ConfigError
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, Node, grow

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chosen:
    """A state of a run, every file of it verified."""

    folder: RunFolder
    checkpoint: Checkpoint
    config: RunConfig
    """Of the run's own record."""
    settings: RunConfig
    """Those of the command that chose it: where its tokenizer and its data lie today."""

    @property
    def name(self) -> str:
        """As in "cooldown-ed7a160094a6"."""
        return self.folder.path.name

    @property
    def variant(self) -> str:
        """The variant that it was first trained for."""
        return self.config.variant

    @property
    def tokens(self) -> int:
        """Of life."""
        return self.checkpoint.progress.tokens


def find_run(config: RunConfig, overrides: Sequence[str]) -> RunFolder:
    """The run's directory: the one that `run` names, or that of the declared run. Works inside a command only.

    Raises:
        ConfigError: it is no run's, or the declared run has not been trained.
    """
    ((folder, _),) = _find_runs([(config, overrides)])
    return folder


def hugging_face_folder(config: RunConfig) -> Path | None:
    """What `run` names, where that is a folder in Hugging Face's layout and no run's directory."""
    folder = Path(config.run).expanduser().absolute() if config.run is not None else None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def choose(config: RunConfig, overrides: Sequence[str]) -> Chosen:
    """The checkpoint that a command is about: at `at_tokens`, or the newest of the run. Works inside a command only.

    Raises:
        ConfigError: there is no such run, or it has no such checkpoint.
        DamageError: a file of it is missing or altered.
    """
    return choose_all([(config, overrides)])[0]


def choose_all(jobs: Iterable[tuple[RunConfig, Sequence[str]]]) -> list[Chosen]:
    """The checkpoints that several jobs of a sweep are about: each run once, parents first, branch by branch.

    Raises: as `choose`.
    """
    return [choose_of(folder, settings) for folder, settings in _find_runs(jobs)]


def choose_of(folder: RunFolder, settings: RunConfig) -> Chosen:
    """The checkpoint of a run that `settings` ask for.

    Raises: as `choose`.
    """
    digest, _ = read_identity(folder)
    tokens = _position(folder, settings.at_tokens)
    return Chosen(folder, read_checkpoint(folder, tokens, digest), from_yaml(folder.config), settings)


def read_weights(chosen: Chosen) -> dict[str, Tensor]:
    """The weights under our names, fp32: views of the mapped file, so that only what is used is read.

    Raises:
        DamageError: the file does not hold a model of the recorded sizes.
    """
    from tinyllama.engine import tensorfile
    from tinyllama.model.llama import parameter_shapes

    shapes = parameter_shapes(chosen.config.model)
    flat = tensorfile.read(weights_file(chosen), shapes)
    return {name: tensor.view(shapes[name]) for name, tensor in flat.items()}


def weights_file(chosen: Chosen) -> Path:
    """All weights, fp32, whatever number of ranks and ZeRO stage wrote them."""
    from tinyllama.engine.snapshot import file_of

    return file_of(chosen.checkpoint.path, "weights")


def load_model(chosen: Chosen) -> tuple[Any, Any]:
    """Model and tokenizer as transformers has them, where and in what this machine computes.

    Raises:
        ConfigError: the tokenizer is gone, or of a kind that transformers does not have.
        DamageError: the file does not hold a model of the recorded sizes.
    """
    from tinyllama.model.transformers import hf_model, hf_tokenizer, place

    (device, dtype), config = place(), chosen.config
    tokenizer = hf_tokenizer(tokenizer_file(chosen), config.tokenizer, config.model.seq_len)
    return hf_model(read_weights(chosen), config.model, dtype).to(device), tokenizer


def tokenizer_file(chosen: Chosen) -> Path:
    """The sentencepiece model that the run was trained with: where the settings have it, or where it lay then.

    Raises:
        ConfigError: neither place has a file with the recorded digest.
    """
    _, meaning = read_identity(chosen.folder)
    wanted, places = meaning["tokenizer"]["digest"], (chosen.settings.tokenizer.path, chosen.config.tokenizer.path)
    for path in map(Path, places):
        if path.is_file() and describe(path)["sha256"] == wanted:
            return path
    found = [f"{path} is {'another' if Path(path).is_file() else 'missing'}" for path in dict.fromkeys(places)]
    raise ConfigError(
        f"tokenizer.path: {chosen.name} was trained with the sentencepiece model of sha256 {wanted[:12]}, and "
        f"{', '.join(found)}; set tokenizer.path to that file"
    )


def _find_runs(jobs: Iterable[tuple[RunConfig, Sequence[str]]]) -> list[tuple[RunFolder, RunConfig]]:
    """Each directory with the settings that led to it."""
    found: dict[RunFolder, RunConfig] = {}
    declared = []
    for config, overrides in jobs:
        if config.run is not None:
            found.setdefault(_named(config.run), config)
        else:
            path = compose_path(overrides)
            declared.append(Job(tuple(overrides), path, make_plan(path, take_inventory(path))))
    for node in grow(declared):
        if node.overrides is not None:
            found.setdefault(_declared(node), node.config)
    return list(found.items())


def _named(run: str) -> RunFolder:
    folder = RunFolder(Path(run).expanduser().absolute())
    if folder.status is Status.absent and not folder.checkpoints.is_dir():
        raise ConfigError(f"run={run} is not the directory of a run: it has no {folder.identity.name}")
    return folder


def _declared(node: Node) -> RunFolder:
    plan, folder = node.plan, RunFolder.of(node.config.paths.runs, node.plan)
    if folder.status is Status.absent:
        others = sorted(str(other) for other in folder.path.parent.glob(f"{plan.stage}-*"))
        remedy = f"; name one that stands: run={' or run='.join(others)}" if others else ""
        raise ConfigError(
            f"stage={plan.stage} of variant={node.config.variant} has not been trained: no {folder.path}{remedy}"
        )
    return folder


def _position(folder: RunFolder, at_tokens: int | None) -> int:
    """Of the checkpoint, in tokens of life."""
    positions = folder.checkpoint_tokens()
    if not positions:
        raise ConfigError(f"{folder.path} has no checkpoint yet; train the run until it has written one")
    if at_tokens is None:
        return positions[-1]
    if at_tokens not in positions:
        stand = ", ".join(map(str, positions))
        raise ConfigError(f"at_tokens={at_tokens}: {folder.path.name} has no checkpoint there; those at {stand} stand")
    return at_tokens
