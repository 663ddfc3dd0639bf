"""What is recorded of a run, and where: MLflow, or nowhere."""

from tinyllama.lineage.describe import record_of
from tinyllama.lineage.record import Dataset, RunRecord, Status, Tracker
from tinyllama.lineage.tracking import (
    TRACKERS,
    build_tracker,
    deliver_pending,
    disagreements,
    measured_throughput,
)

__all__ = [
    "TRACKERS",
    "Dataset",
    "RunRecord",
    "Status",
    "Tracker",
    "build_tracker",
    "deliver_pending",
    "disagreements",
    "measured_throughput",
    "record_of",
]
