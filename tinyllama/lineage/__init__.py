"""What is recorded of a run, and where: MLflow, or nowhere."""

from tinyllama.lineage.describe import corpus_record_of, record_of
from tinyllama.lineage.record import CorpusRecord, Dataset, History, RunRecord, Status, Tracker
from tinyllama.lineage.tracking import (
    TRACKERS,
    build_tracker,
    deliver_pending,
    disagreements,
    histories,
    measured_throughput,
    record_corpora,
    record_evaluations,
)

__all__ = [
    "TRACKERS",
    "CorpusRecord",
    "Dataset",
    "History",
    "RunRecord",
    "Status",
    "Tracker",
    "build_tracker",
    "corpus_record_of",
    "deliver_pending",
    "disagreements",
    "histories",
    "measured_throughput",
    "record_corpora",
    "record_evaluations",
    "record_of",
]
