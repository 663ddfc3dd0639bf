"""What is recorded of a run, and where: MLflow, or nowhere."""

from tinyllama.lineage.record import Dataset, RunRecord, Status, Tracker
from tinyllama.lineage.tracking import TRACKERS, build_tracker

__all__ = ["TRACKERS", "Dataset", "RunRecord", "Status", "Tracker", "build_tracker"]
