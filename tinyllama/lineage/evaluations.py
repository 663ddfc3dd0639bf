"""What was measured of a run's checkpoints (evaluation/record.py writes it), as measurements."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllama.lineage.record import Measurement


def read_evaluations(folder: Path) -> list[Measurement]:
    """Those of all checkpoints, in their order; files that cannot be read are passed over, as are other files."""
    measurements = []
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            measurements.append(_measurement(json.loads(path.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return measurements


def _measurement(document: Mapping[str, Any]) -> Measurement:
    """Names are those by which training records what it measures of the same: "evaluation/hellaswag"."""
    values = {f"evaluation/{name}": float(task["value"]) for name, task in document["tasks"].items()}
    values |= {f"evaluation/{name}": float(average) for name, average in document["suites"].items()}
    for corpus, losses in document["perplexity"].items():
        values |= {f"{name}/{corpus}": float(losses[name]) for name in ("perplexity", "bits_per_byte")}
    return Measurement(int(document["step"]), int(1000 * document["time"]), values)
