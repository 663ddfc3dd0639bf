"""What is known of a model's abilities, as it lies in its run's directory and is printed."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllama.checkpoint.files import write_durably
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.standing import read_identity
from tinyllama.errors import DamageError
from tinyllama.evaluation.suites import suite_averages

Tasks = dict[str, dict[str, Any]]
Perplexity = dict[str, dict[str, float | int]]


@dataclass
class Evaluation:
    """One model's results: of each task `metric, value, stderr, published, samples ...`, of each corpus its losses."""

    name: str
    digest: str | None = None
    """Of its run; None for models that are not of ours."""
    variants: tuple[str, ...] = ()
    """That its run was trained for; none for models that are not of ours."""
    tokens: int | None = None
    """Of life; None for models that are not of ours."""
    step: int | None = None
    tasks: Tasks = field(default_factory=dict)
    perplexity: Perplexity = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    time: float = field(default_factory=lambda: round(time.time(), 3))
    """When it was last added to."""

    @property
    def suites(self) -> dict[str, float]:
        """Averages of the suites that are complete."""
        return suite_averages({name: task["value"] for name, task in self.tasks.items()})

    @property
    def document(self) -> dict[str, Any]:
        """As format=json prints it and the run's directory keeps it."""
        return {
            "model": self.name,
            "digest": self.digest,
            "variants": list(self.variants),
            "tokens": self.tokens,
            "step": self.step,
            "tasks": self.tasks,
            "suites": self.suites,
            "perplexity": self.perplexity,
            "versions": self.versions,
            "time": self.time,
        }

    def merged_into(self, path: Path) -> "Evaluation":
        """What `path` knows already together with this, which replaces what it has in common; written there."""
        before = read_evaluation(path)
        if before is not None:
            self.tasks = before.tasks | self.tasks
            self.perplexity = before.perplexity | self.perplexity
        path.parent.mkdir(exist_ok=True)
        write_durably(path, json.dumps(self.document, indent=1, ensure_ascii=False) + "\n")
        return self


def read_evaluation(path: Path) -> Evaluation | None:
    """What was measured of a checkpoint; None if that is nothing.

    Raises:
        DamageError: the file cannot be read.
    """
    try:
        fields = json.loads(path.read_bytes())
        return Evaluation(
            name=fields["model"],
            **{name: fields[name] for name in fields.keys() & Evaluation.__dataclass_fields__.keys()},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path} cannot be read ({error}); remove it, and evaluate again") from error


@dataclass(frozen=True)
class Ancestor:
    """A state that a run, or one of its ancestors, went on from."""

    folder: RunFolder
    stage: str
    tokens: int
    """Of life, where it was left."""

    @property
    def name(self) -> str:
        return self.folder.path.name


def ancestors(folder: RunFolder) -> Iterator[Ancestor]:
    """Of a run, the parent first; as far as their directories stand beside it.

    Raises:
        DamageError: the record of one cannot be read.
    """
    _, meaning = read_identity(folder)
    while found := sorted(folder.path.parent.glob(f"*-{str(meaning.get('parent'))[:12]}")):
        try:
            tokens = int(json.loads(folder.plan.read_bytes())["start_tokens"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamageError(f"{folder.plan} cannot be read ({error}); restore it from a copy") from error
        folder = RunFolder(found[0])
        _, meaning = read_identity(folder)
        yield Ancestor(folder, str(meaning["stage"]["name"]), tokens)


def differences(tasks: Tasks, others: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """By how much the values lie above those of another model, where both were asked the same."""
    same = ("metric", "samples", "shots", "version")
    return {
        name: task["value"] - others[name]["value"]
        for name, task in tasks.items()
        if name in others and all(task.get(each) == others[name].get(each) for each in same)
    }
