"""Names of all that a run leaves on disk. Nothing else spells them."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tinyllama.planning.plan import RunPlan


class Status(Enum):
    absent = "absent"
    partial = "partial"
    done = "done"


@dataclass(frozen=True)
class RunFolder:
    """The directory of one stage's run: {runs}/{family}/{stage}-{digest}."""

    path: Path

    @classmethod
    def of(cls, runs: str | Path, plan: RunPlan) -> "RunFolder":
        return cls(Path(runs) / plan.family / plan.name)

    @property
    def identity(self) -> Path:
        """All that the digest is made of."""
        return self.path / "identity.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def corpora(self) -> Path:
        """The data that the run reads: sizes and fingerprints."""
        return self.path / "corpora.json"

    @property
    def metrics(self) -> Path:
        """One object per step."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """With trace=true, the samples of each step in batch order."""
        return self.path / "samples.jsonl"

    @property
    def log(self) -> Path:
        """What the run printed, when a launcher started it."""
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        """Held while a process trains here."""
        return self.path / ".lock"

    @property
    def outbox(self) -> Path:
        """Folder of what the tracking store has not been given yet; without letters it has everything."""
        return self.path / "outbox"

    @property
    def done(self) -> Path:
        """Written last, after the final checkpoint."""
        return self.path / "DONE"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, tokens: int) -> Path:
        """The checkpoint at a position of life."""
        return self.checkpoints / f"{tokens:015d}"

    def checkpoint_tokens(self) -> list[int]:
        """Positions of the whole checkpoints, ascending. Half-written ones have other names."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.checkpoints.iterdir() if entry.name.isdigit())

    @property
    def status(self) -> Status:
        if self.done.is_file():
            return Status.done
        return Status.partial if self.identity.is_file() else Status.absent
