"""Names of all that a run leaves on disk. Nothing else spells them."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tinyllama.planning.plan import RunPlan

_WRITING, _REMOVING = ".writing", ".removing"


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
    def skipped(self) -> Path:
        """Steps that changed no weight: why, and their samples."""
        return self.path / "skipped.jsonl"

    @property
    def profile(self) -> Path:
        """With profile=true, a folder of what was recorded last: where a step goes."""
        return self.path / "profile"

    def profile_trace(self, step: int) -> Path:
        """Of the recorder, from a step on; for Perfetto and the like."""
        return self.profile / f"trace-step{step:03d}.json.gz"

    @property
    def profile_document(self) -> Path:
        return self.profile / "profile.json"

    @property
    def profile_table(self) -> Path:
        """The same for people."""
        return self.profile / "table.txt"

    @property
    def log(self) -> Path:
        """What the run printed, when the local launcher started it."""
        return self.path / "log.txt"

    @property
    def logs(self) -> Path:
        """Folder of what SLURM jobs printed: JOB.txt of the job's script, JOB.RANK.txt of each rank."""
        return self.path / "logs"

    @property
    def job(self) -> Path:
        """Folder of what was submitted to SLURM: the record, the script, the frozen configs."""
        return self.path / "job"

    @property
    def job_record(self) -> Path:
        """What was submitted last, and as which job."""
        return self.job / "job.json"

    @property
    def job_script(self) -> Path:
        """What sbatch was given."""
        return self.job / "script.sh"

    @property
    def job_configs(self) -> Path:
        """Folder of the configs of the path as they were at submission, in files that begin with their place."""
        return self.job / "configs"

    @property
    def job_leaving(self) -> Path:
        """Left by a cancellation that asked the job to save and leave."""
        return self.job / "LEAVING"

    @property
    def submission_lock(self) -> Path:
        """Held while jobs of the run's family are submitted."""
        return self.path.parent / ".submission"

    @property
    def fruitless(self) -> Path:
        """A line for each life of the job in a row that brought no new checkpoint."""
        return self.job / "fruitless"

    @property
    def job_end(self) -> Path:
        """How the ranks of a job ended, in a word for its script."""
        return self.job / "END"

    @property
    def faults(self) -> Path:
        """Stack traces of ranks that failed."""
        return self.path / "faults.txt"

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

    @property
    def latest(self) -> Path:
        """Names the last checkpoint that was written, so that it is missed when it is gone."""
        return self.path / "LATEST"

    def writing(self, tokens: int, attempt: int = 0) -> Path:
        """Where a checkpoint is written before it gets its name."""
        return self.checkpoints / f".{tokens:015d}.{attempt}{_WRITING}"

    def removing(self, checkpoint: Path) -> Path:
        """What a checkpoint is called while it is removed."""
        return checkpoint.with_name(f".{checkpoint.name}{_REMOVING}")

    def leftovers(self) -> list[Path]:
        """What such work left behind when it was cut short; nothing that is whole."""
        found = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return [entry for entry in found if entry.suffix in (_WRITING, _REMOVING)]

    def checkpoint_tokens(self) -> list[int]:
        """Positions of the whole checkpoints, ascending. Half-written ones have other names."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.checkpoints.iterdir() if entry.name.isdigit())

    @property
    def evaluations(self) -> Path:
        """Folder of what `evaluate` has measured."""
        return self.path / "evaluations"

    def evaluation(self, tokens: int) -> Path:
        """What has been measured of the checkpoint at a position of life."""
        return self.evaluations / f"{tokens:015d}.json"

    def evaluation_tokens(self) -> list[int]:
        """Positions at which something has been measured, ascending."""
        return sorted(int(entry.stem) for entry in self.evaluations.glob("*.json") if entry.stem.isdigit())

    @property
    def status(self) -> Status:
        if self.done.is_file():
            return Status.done
        return Status.partial if self.identity.is_file() else Status.absent
