"""Pictures on disk, each as SVG and PNG. Without being asked for one, nobody pays for matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllama.planning.plan import RunPlan
from tinyllama.planning.tree import Node

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_family(nodes: Sequence[Node], folder: Path) -> list[Path]:
    """The mixture and the learning rate of every life, and the tree; returns the files in `folder`."""
    from tinyllama.reporting.figures.curves import curves_figure
    from tinyllama.reporting.figures.life import lives
    from tinyllama.reporting.figures.mixture import mixture_figure
    from tinyllama.reporting.figures.tree import tree_figure

    each = lives(nodes)
    figures = {"mixture": mixture_figure(each), "learning_rate": curves_figure(each), "tree": tree_figure(nodes)}
    return save_all(figures, folder)


def draw_run(plan: RunPlan, folder: Path) -> list[Path]:
    """The mixture and the learning rate from the root to the end of one run; returns the files in `folder`."""
    from tinyllama.reporting.figures.curves import curves_figure
    from tinyllama.reporting.figures.life import Life
    from tinyllama.reporting.figures.mixture import mixture_figure

    life = [Life((), plan)]
    return save_all({"mixture": mixture_figure(life), "learning_rate": curves_figure(life)}, folder)


def save_all(figures: Mapping[str, "Figure"], folder: Path) -> list[Path]:
    """Each under its name."""
    from tinyllama.reporting.figures.canvas import save

    folder.mkdir(parents=True, exist_ok=True)
    return [path for name, figure in figures.items() for path in save(figure, folder / name)]
