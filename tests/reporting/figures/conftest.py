"""Families at full scale, and how to look at what was drawn of them."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations

import pytest
from hydra import initialize_config_dir
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from tinyllama.config.app import compose_path
from tinyllama.config.location import conf_folder
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, Node, grow

VARIANTS = ("standard", "math_code", "chinese")
LONG = "back-to-the-common-mixture-of-the-whole-family-with-a-second-ramp"
FAMILIES: dict[str, list[list[str]]] = {
    "one run": [["stage=basic"]],
    "seven runs": [[f"+variant={name}", "stage=cooldown"] for name in VARIANTS],
    "seven small runs": [["+scale=demo", f"+variant={name}", "stage=cooldown"] for name in VARIANTS],
    "a sweep of six": [
        ["+variant=chinese", "stage=cooldown", f"data_mix.name=chinese-with-a-weight-of-{weight}",
         f"data_mix.weights.skypile={weight}"] for weight in (5, 10, 20, 40, 60, 80)
    ],
    "forks and two ramps": [
        ["+variant=math_code", "stage=cooldown"],
        ["+variant=math_code", "stage=continual", "stage.fork_at_tokens=1.2T", "stage.name=early"],
        ["+variant=chinese", "stage=cooldown", "stage.ramp_tokens=4B", "stage.mix=root", f"stage.name={LONG}"],
        ["+variant=chinese", "stage=cooldown", "stage.ramp_tokens=20B", "stage.mix=root",
         "stage.fork_at_tokens=1.503T", "stage.name=within_the_ramp"],
    ],
    "learning rates": [
        ["+variant=chinese", "stage=cooldown", f"optimizer.learning_rate={rate}", "schedule.min_learning_rate=1e-5"]
        for rate in (2e-4, 8e-4)
    ],
}  # fmt: skip


@cache
def plant(jobs: tuple[tuple[str, ...], ...]) -> tuple[Node, ...]:
    """The nodes of the tree; kept, since every picture of it is made from the same."""
    grown = []
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        for overrides in jobs:
            path = compose_path((*overrides, "paths.runs=runs-that-nobody-made"))
            inventory = Inventory({name: Corpus(name, f"of {name}", (10**7,) * 4) for name in path[-1].corpora}, "t")
            grown.append(Job(overrides, path, make_plan(path, inventory)))
    return grow(grown)


@pytest.fixture
def family() -> Callable[[Sequence[Sequence[str]]], tuple[Node, ...]]:
    """family([["stage=basic"], ...]) -> the nodes of the tree."""
    return lambda jobs: plant(tuple(map(tuple, jobs)))


@pytest.fixture(params=FAMILIES)
def nodes(request, family) -> tuple[Node, ...]:
    return family(FAMILIES[request.param])


@pytest.fixture
def seven(family) -> tuple[Node, ...]:
    return family(FAMILIES["seven runs"])


def drawn_texts(figure: Figure) -> list[Text]:
    """All letters that are seen, after the figure was drawn."""
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    hidden = {
        id(tick.label1)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if not axes.axison or not axis.get_view_interval()[0] <= tick.get_loc() <= axis.get_view_interval()[1]
    }
    return [text for text in texts if id(text) not in hidden]


def assert_readable(figure: Figure) -> None:
    """Every text lies on the sheet, and none on another."""
    texts = drawn_texts(figure)
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text.get_text()
    for one, other in combinations(range(len(texts)), 2):
        assert not boxes[one].padded(-0.5).overlaps(boxes[other].padded(-0.5)), (
            texts[one].get_text(),
            texts[other].get_text(),
        )
