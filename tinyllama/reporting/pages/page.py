"""A family -> one HTML file that needs nothing else. Pure."""

import gzip
import json
from base64 import b64encode
from importlib.resources import files
from string import Template
from typing import Any

from tinyllama.reporting.pages.charts import chart_document
from tinyllama.reporting.pages.family import Family
from tinyllama.reporting.pages.markup import Markup, element, joined
from tinyllama.reporting.pages.node import family_view, run_view, tiles
from tinyllama.reporting.pages.series import BUCKETS
from tinyllama.reporting.pages.tree import tree


def page(family: Family, made: str) -> str:
    """The document. `made`: when, and by what, in words for people."""
    parts = {
        "title": joined(f"{family.name}: a family of language models"),
        "family": joined(family.name),
        "made": joined(f"Made from {family.source}, {made}."),
        "lacks": element("p", family.lacks, class_="note") if family.lacks else "",
        "honesty": joined(_honesty(family)),
        "tiles": tiles(family),
        "tree": tree(family),
        "views": joined(family_view(family), *(run_view(family, run) for run in family.runs)),
        "data": _json(chart_document(family)),
        "plotly": _plotly(),
        "style": _own("page.css"),
        "script": _own("page.js"),
    }
    return Template(_own("page.html")).substitute(parts)


def _honesty(family: Family) -> str:
    many = max(len(run.steps) for run in family.runs)
    if many <= BUCKETS:
        return "Every recorded step is a point of its own."
    return (
        f"Runs of more than {BUCKETS} steps are drawn as {BUCKETS} points, each the mean of up to "
        f"{-(-many // BUCKETS):,} neighbouring steps at the position of the last; the band behind a line spans their "
        f"lowest and highest values. Skipped steps count in no mean and are marked one by one."
    )


def _json(document: Any) -> Markup:
    """Within a script element, which no text of it can end."""
    return Markup(json.dumps(document, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _plotly() -> Markup:
    """The library, gzipped; page.js unpacks it."""
    library = files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return Markup(b64encode(gzip.compress(library, 9, mtime=0)).decode())


def _own(name: str) -> Markup:
    return Markup(files(__package__).joinpath(name).read_text("utf-8"))
