"""Runs on disk that nobody trained: the record that training leaves, and checkpoints of random weights."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tinyllama.checkpoint.corpora import CorpusRecord
from tinyllama.checkpoint.files import describe_all, write_sealed
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.checkpoint.manifest import Checkpoint, write_manifest
from tinyllama.config.load import to_yaml
from tinyllama.config.schema import RunConfig
from tinyllama.engine import tensorfile
from tinyllama.engine.tensorfile import Piece
from tinyllama.model.llama import parameter_shapes
from tinyllama.planning.corpora import Inventory
from tinyllama.planning.plan import RunPlan, make_plan
from tinyllama.planning.progress import Progress
from tinyllama.training.description import write_plan


def lay_run(path: Sequence[RunConfig], inventory: Inventory, ends: Iterable[int] | None = None) -> RunFolder:
    """The run of the last config of a path.

    Args:
        ends: steps of the stage at which a checkpoint stands; None: its last.
    """
    config, plan = path[-1], make_plan(path, inventory)
    folder = RunFolder.of(config.paths.runs, plan)
    folder.path.mkdir(parents=True)
    folder.config.write_text(to_yaml(config), encoding="utf-8")
    write_sealed(folder.corpora, {name: vars(record) for name, record in _corpora(plan, inventory).items()})
    write_plan(config, plan, [config.variant], Status.partial)
    folder.identity.write_text(json.dumps({"digest": plan.digest, "meaning": plan.meaning}), encoding="utf-8")
    for step in [plan.steps] if ends is None else ends:
        _lay_checkpoint(folder, plan, config, step)
    return folder


def random_weights(config: RunConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Such that activations and logits are about as large as trained ones', one after the other."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in parameter_shapes(config.model).items():
        values = torch.randn(shape, generator=generator)
        yield name, values / shape[-1] ** 0.5 if len(shape) > 1 else 1 + values / 10


def write_weights(path: Path, config: RunConfig, weights: Iterable[tuple[str, Tensor]]) -> None:
    """As a checkpoint has them."""
    pieces = (Piece(name, 0, tensor.flatten()) for name, tensor in weights)
    tensorfile.write(path, parameter_shapes(config.model), pieces)


def _lay_checkpoint(folder: RunFolder, plan: RunPlan, config: RunConfig, step: int) -> None:
    samples = step * plan.batch_samples
    progress = Progress(step, samples, plan.start_tokens + samples * plan.seq_len)
    path = folder.checkpoint(progress.tokens)
    path.mkdir(parents=True)
    write_weights(path / "weights.safetensors", config, random_weights(config, seed=progress.tokens))
    (path / "optimizer.json").write_text('{"steps": 1}', encoding="utf-8")
    written = sorted(path.iterdir())
    files = {each.name: found for each, found in zip(written, describe_all(written), strict=True)}
    write_manifest(Checkpoint(path, plan.digest, progress, "0" * 64, 1, {"tinyllama": "0"}, files))


def _corpora(plan: RunPlan, inventory: Inventory) -> dict[str, CorpusRecord]:
    return {
        name: CorpusRecord(
            fingerprint=corpus.fingerprint,
            tokenizer_digest=inventory.tokenizer_digest or "",
            documents=1,
            samples=corpus.samples,
            tokens=corpus.samples * plan.seq_len,
            shard_samples=corpus.shard_samples,
            folder="nowhere",
            manifest="",
        )
        for name, corpus in plan.corpora.items()
    }
