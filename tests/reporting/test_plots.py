"""Pictures on disk."""

from xml.etree import ElementTree

import pytest
from PIL import Image

from tinyllama.data.inventory import take_inventory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, grow
from tinyllama.reporting.plots import draw_family, draw_run


@pytest.fixture
def nodes(compose, tmp_path):
    path = compose("+scale=demo", "+variant=chinese", "stage=continual", f"paths.data={tmp_path}")
    return grow([Job((), path, make_plan(path, take_inventory(path)))])


def assert_pictures(files):
    for file in files:
        if file.suffix == ".svg":
            assert ElementTree.parse(file).getroot().tag.endswith("svg")
        else:
            with Image.open(file) as picture:
                assert picture.format == "PNG"
                assert len(picture.convert("L").getcolors(256)) > 10, "an empty sheet"


def test_a_family_has_three_pictures_in_two_formats(nodes, tmp_path):
    files = draw_family(nodes, tmp_path / "new" / "folder")
    names = [f"{name}.{kind}" for name in ("mixture", "learning_rate", "tree") for kind in ("svg", "png")]
    assert [file.name for file in files] == names
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(files)
    assert_pictures(files)


def test_a_run_has_the_pictures_of_its_own_path(nodes, tmp_path):
    files = draw_run(nodes[-1].plan, tmp_path / "run")
    assert [file.name for file in files] == [
        "mixture.svg", "mixture.png", "learning_rate.svg", "learning_rate.png"
    ]  # fmt: skip
    assert_pictures(files)


def test_the_same_plan_gives_the_same_files(nodes, tmp_path):
    first, second = (draw_family(nodes, tmp_path / name) for name in ("first", "second"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
