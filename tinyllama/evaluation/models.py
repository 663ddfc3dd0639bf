"""The models that are evaluated: checkpoints of runs, and folders in Hugging Face's layout."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.choice import Chosen, choose_of, load_model, tokenizer_file
from tinyllama.checkpoint.corpora import read_corpora
from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.checkpoint.standing import recorded_variants
from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import chosen_folder, corpus_folders
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError
from tinyllama.evaluation.held_out import find_held_out, held_out_corpora
from tinyllama.evaluation.perplexity import Loss, foreign_loss, own_loss
from tinyllama.evaluation.published import published_of_folder, published_of_run
from tinyllama.evaluation.record import Evaluation
from tinyllama.model.transformers import load_hf, place


@dataclass(frozen=True)
class Loaded:
    """A model in memory, as transformers has it."""

    model: Any
    tokenizer: Any


class Subject(ABC):
    """What is evaluated."""

    @property
    @abstractmethod
    def published(self) -> Mapping[str, float]:
        """Figures that it may be held against, in percent by task."""

    @abstractmethod
    def evaluation(self) -> Evaluation:
        """Nothing known yet."""

    @abstractmethod
    def load(self) -> Loaded:
        """In bf16 on a GPU if there is one, else in fp32."""

    @abstractmethod
    def losses(self, loaded: Loaded, batch: int) -> dict[str, Loss]:
        """On the held-out samples of each corpus that are on this machine."""


@dataclass(frozen=True)
class OwnModel(Subject):
    """A checkpoint of a run."""

    chosen: Chosen

    @property
    def published(self) -> Mapping[str, float]:
        chosen = self.chosen
        return published_of_run(chosen.variant, chosen.config.model, chosen.tokens)

    def evaluation(self) -> Evaluation:
        chosen = self.chosen
        return Evaluation(
            chosen.name,
            digest=chosen.checkpoint.digest,
            variants=recorded_variants(chosen.folder),
            tokens=chosen.tokens,
            step=chosen.checkpoint.progress.step,
        )

    def load(self) -> Loaded:
        return Loaded(*load_model(self.chosen))

    def losses(self, loaded: Loaded, batch: int) -> dict[str, Loss]:
        config = self._config
        recorded = {name: each.corpus(name) for name, each in read_corpora(self.chosen.folder.corpora).items()}
        trained = corpus_folders(config, recorded)
        folders = {name: trained.get(name) or chosen_folder(config, name) for name in config.corpora}
        corpora = (found for name, folder in folders.items() if (found := find_held_out(name, folder)))
        return {
            corpus.name: own_loss(
                loaded.model, corpus, self._tokenizer, config.validation.samples, config.model.seq_len, batch
            )
            for corpus in corpora
        }

    @property
    def _config(self) -> RunConfig:
        """The run's own, its data where the settings have it today."""
        return replace(self.chosen.config, paths=self.chosen.settings.paths)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.chosen.config.tokenizer, tokenizer_file(self.chosen).read_bytes())


@dataclass(frozen=True)
class ForeignModel(Subject):
    """A folder in Hugging Face's layout."""

    folder: Path
    settings: RunConfig

    @property
    def published(self) -> Mapping[str, float]:
        return published_of_folder(self.folder)

    def evaluation(self) -> Evaluation:
        return Evaluation(self.folder.name)

    def load(self) -> Loaded:
        device, dtype = place()
        model, tokenizer = load_hf(self.folder, dtype)
        return Loaded(model.to(device), tokenizer)

    def losses(self, loaded: Loaded, batch: int) -> dict[str, Loss]:
        config = self.settings
        ours = Tokenizer.load(config.tokenizer)
        return {
            corpus.name: foreign_loss(
                loaded.model,
                loaded.tokenizer,
                corpus,
                ours,
                config.validation.samples,
                config.model.seq_len,
                batch,
            )
            for corpus in held_out_corpora(config)
        }


def find_models(chosen: Iterable[Chosen], folders: Iterable[Path], settings: RunConfig) -> list[Subject]:
    """Those that were chosen, and those that `evaluation.models` names, each once.

    Args:
        folders: others that were chosen, in Hugging Face's layout.

    Raises:
        ConfigError: a name is neither a folder of a model nor a run's directory.
        DamageError: a file of a run is missing or altered.
    """
    models: dict[Path, Subject] = {each.folder.path.resolve(): OwnModel(each) for each in chosen}
    models |= {folder.resolve(): ForeignModel(folder, settings) for folder in folders}
    for name in settings.evaluation.models:
        path = Path(name).expanduser().absolute()
        if (path / "config.json").is_file():
            models.setdefault(path.resolve(), ForeignModel(path, settings))
        elif RunFolder(path).status is not Status.absent:
            models.setdefault(path.resolve(), OwnModel(choose_of(RunFolder(path), settings)))
        else:
            raise ConfigError(
                f"evaluation.models={name} is neither a folder in Hugging Face's layout (no config.json) nor the "
                f"directory of a run (no {RunFolder(path).identity.name})"
            )
    return list(models.values())
