"""The page in a real browser without a network: what it shows is what the run directories say."""

import re

import pytest

from tests.reporting.pages.conftest import lines_of
from tinyllama.reporting.pages.page import page
from tinyllama.reporting.pages.runs import read_runs

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page")]


@pytest.fixture(scope="module")
def report(family, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(read_runs(family.runs, "demo"), "now"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def names(family) -> dict[str, str]:
    """Of the runs, by what the fixture calls them."""
    return {name: node.plan.name for name, node in family.nodes.items()}


def traces(page, kind: str, of: str = "") -> list[dict]:
    """What a chart has drawn: its lines, without bands and marks."""
    drawn = page.evaluate(
        """([kind, of]) => [...document.querySelectorAll(`[data-chart="${kind}"]`)]
            .find((canvas) => !of || canvas.dataset.of === of)
            .data.map(({name, x, y, mode}) => ({name, x: [...x], y: [...y], mode}))""",
        [kind, of],
    )
    return [trace for trace in drawn if trace["x"] != [None]]


def loss_line(steps: list[dict]) -> tuple[tuple, tuple]:
    """With the five digits that a picture has, and without what was skipped."""
    losses = [None if step.get("skipped") else float(f"{step['loss']:.5g}") for step in steps]
    return tuple(step["tokens"] for step in steps), tuple(losses)


def shown(page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.view')].filter((view) => view.offsetParent).map((v) => v.id)")


def test_a_click_on_a_node_shows_that_node_and_its_address_leads_back_to_it(report, opened, names):
    with opened(report) as page:
        assert shown(page) == ["family"]
        for name in names.values():
            page.click(f".card[data-view='{name}']")
            assert shown(page) == [name]
            assert page.evaluate("location.hash") == f"#{name}"
            assert page.get_attribute(f".card[data-view='{name}']", "aria-selected") == "true"
        page.go_back()
        assert shown(page) == [list(names.values())[-2]]
        page.click("text=The whole family")
        assert shown(page) == ["family"]
    with opened(report, hash=f"#{names['cooldown chinese']}") as page:
        assert shown(page) == [names["cooldown chinese"]]
    with opened(report, hash="#gone") as page:
        assert shown(page) == ["family"]


def test_the_keyboard_walks_the_tree_and_sees_where_it_is(report, opened, names):
    with opened(report) as page:
        page.focus("#theme")
        page.keyboard.press("Tab")  # the whole family
        page.keyboard.press("Tab")  # the tree, one stop for all of it
        walk = [
            (None, "basic"), ("ArrowRight", "continual standard"), ("ArrowRight", "cooldown standard"),
            ("ArrowLeft", "continual standard"), ("End", "cooldown chinese"), ("ArrowUp", "continual chinese"),
            ("Home", "basic"), ("ArrowDown", "continual standard"),
        ]  # fmt: skip
        for key, name in walk:
            if key is not None:
                page.keyboard.press(key)
                assert shown(page) == [names[name]]
            assert page.evaluate("document.activeElement.dataset.view") == names[name]
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.evaluate("document.querySelectorAll('.card[tabindex=\"0\"]').length") == 1
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
        assert shown(page) == [names["basic"]]


def test_what_is_drawn_is_what_the_journals_say(report, opened, names, family):
    with opened(report) as page:
        drawn = {(tuple(trace["x"]), tuple(trace["y"])) for trace in traces(page, "family-loss")}
        assert drawn == {loss_line(lines_of(family.folder(name).metrics)) for name in names}
        page.click(f".card[data-view='{names['continual chinese']}']")
        steps = lines_of(family.folder("continual chinese").metrics)
        name = names["continual chinese"]
        (rates,) = traces(page, "tokens_per_second", name)
        assert rates["y"] == pytest.approx([step["tokens_per_second"] for step in steps], rel=1e-4)
        (waits,) = traces(page, "data_wait", name)
        assert waits["y"] == pytest.approx([1000 * step["data_wait"] for step in steps], rel=1e-4)
        learning_rate, batch = traces(page, "learning_rate", name)
        assert learning_rate["y"] == pytest.approx([step["learning_rate"] for step in steps], rel=1e-4)
        assert set(batch["y"]) == {family.nodes["continual chinese"].plan.batch_tokens}
        _, marks = traces(page, "loss", name)
        assert (marks["x"], marks["y"][0]) == ([steps[6]["tokens"], steps[8]["tokens"]], 9.75)
        mixture = {trace["name"]: trace["y"] for trace in traces(page, "mixture", name)}
        sizes = [sum(step["corpus_samples"].values()) for step in steps]
        for corpus in ("slimpajama", "skypile"):
            read = [step["corpus_samples"][corpus] / size for step, size in zip(steps, sizes, strict=True)]
            assert mixture[corpus] == pytest.approx(read, abs=1e-4)
            declared = mixture[f"{corpus}, declared"]
            assert declared == pytest.approx(read, abs=2 / sizes[0])
            assert declared[-1] == pytest.approx(0.5)
        validation = {trace["name"]: trace for trace in traces(page, "validation", name)}
        known = [step for step in steps if "validation" in step]
        assert validation["skypile"]["x"] == [step["tokens"] for step in known]
        assert validation["skypile"]["y"] == pytest.approx([step["validation"]["skypile"] for step in known], rel=1e-4)


def test_the_tables_tell_evaluations_with_their_gains_and_every_skipped_step(report, opened, names):
    with opened(report, hash=f"#{names['continual chinese']}") as page:
        text = page.inner_text(".view.shown")
        assert re.search(r"hellaswag\s+acc_norm\s+27\.50 ± 1\.25\s+basic \+1\.50\s+58\.23\s+−30\.73", text)
        assert re.search(r"piqa\s+acc_norm\s+51\.00 ± 1\.25\s+basic −1\.00\s", text)
        assert re.search(r"skypile\s+3\.2500\s+25\.79\s+1\.4375", text)
        assert re.search(r"7\s+\S+\s+skipped\s+loss 9\.75 is 11\.2 deviations above its usual 5\s+9\.7500", text)
        assert re.search(r"9\s+\S+\s+skipped\s+its </script> is bad\s+not finite", text)
        assert re.search(r"12\s+\S+\s+2:00", text)
        assert re.search(r"mix\.skypile\s+–\s+0\.5", text)
        assert "more than 0.5" in text
        page.click("text=The whole family")
        row = page.inner_text("#family tr:has(th:text-is('hellaswag'))")
        assert re.search(
            r"26\.00 ± 1\.25\s+published −35\.47\s+25\.00 ± 1\.25\s+basic −1\.00\s+"
            r"27\.50 ± 1\.25\s+basic \+1\.50\s+published −30\.73",
            row,
        )


def test_dark_and_light_differ_in_every_colour_and_the_button_switches(report, opened):
    def colours(page) -> list[str]:
        return page.evaluate(
            """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
                getComputedStyle(document.querySelector(".card")).backgroundColor,
                document.querySelector(".chart").layout.font.color,
                document.querySelector(".chart").data[0].line.color]"""
        )

    with opened(report, scheme="light") as page:
        light = colours(page)
        page.click("#theme")
        switched = colours(page)
        page.click("#theme")
        assert colours(page) == light
    with opened(report, scheme="dark") as page:
        assert colours(page) == switched
    assert [one == other for one, other in zip(light, switched, strict=True)] == [False] * 5


def test_a_variant_has_one_colour_everywhere(report, opened, names):
    with opened(report) as page:
        found = page.evaluate(
            """(names) => names.map((name) => {
                const run = page.runs.find((run) => run.name === name);
                const card = document.querySelector(`.card[data-view="${name}"]`);
                const parts = [card.querySelector(".swatch i"), card.querySelector(".life > span")];
                const lines = [...document.querySelectorAll("#family .chart")].flatMap((canvas) => canvas.data)
                    .filter((line) => line.name === run.title || String(line.y) === String(run.loss.mean));
                return [...parts.map((part) => getComputedStyle(part).backgroundColor),
                        ...lines.map((line) => line.line.color)];
            })""",
            [names[name] for name in ("continual standard", "cooldown standard", "continual math_code")],
        )
        assert [len(colours) for colours in found] == [7, 7, 7]
        one, again, other = map(set, found)
        assert (len(one), one, len(other)) == (1, again, 1)
        assert one != other


@pytest.mark.parametrize("name", [None, "continual chinese"])
def test_a_narrow_screen_scrolls_nothing_sideways_but_tables_in_their_boxes(name, report, opened, names):
    with opened(report, hash=f"#{names[name]}" if name else "", width=360) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        wide = page.evaluate(
            """[...document.querySelectorAll("body *")].filter((one) => one.offsetParent && !one.closest(".scroll"))
                .filter((one) => one.getBoundingClientRect().right > 360.5).map((one) => one.outerHTML.slice(0, 80))"""
        )
        assert wide == []


def test_every_chart_has_a_name_and_every_column_a_heading(report, opened):
    with opened(report) as page:
        labels = page.evaluate(
            "[...document.querySelectorAll('.chart')].map((one) => [one.getAttribute('role'), one.ariaLabel])"
        )
        assert len(labels) > 20
        assert all(role == "img" and label for role, label in labels)
        assert page.evaluate("[...document.querySelectorAll('thead th')].every((one) => one.scope && one.innerText)")


def test_on_paper_every_node_stands_whole_with_its_charts_in_light_colours(report, opened, names, tmp_path):
    with opened(report, scheme="dark") as page:
        page.evaluate(
            """window.addEventListener("beforeprint", () => { window.onPaper = {
                views: [...document.querySelectorAll(".view")].filter((one) => one.offsetParent).map((one) => one.id),
                open: [...document.querySelectorAll("details")].every((details) => details.open),
                charts: [...document.querySelectorAll(".chart")].map((one) => one.data?.length ?? 0),
                ink: document.querySelector(".chart").layout.font.color,
                heights: [...document.querySelectorAll(".chart")].map((one) => one.layout.height),
            }; })"""
        )
        printed = tmp_path / "printed.pdf"
        page.pdf(path=printed, format="A4")
        found = page.evaluate("window.onPaper")
        assert found["views"] == ["family", *read_order(page)]
        assert set(found["views"][1:]) == set(names.values())
        assert found["open"]
        assert min(found["charts"]) > 0
        assert found["ink"] == "rgb(28, 33, 40)"
        assert len(re.findall(rb"/Type /Page\b(?!s)", printed.read_bytes())) > len(names)
        page.wait_for_function("document.querySelectorAll('.view.shown').length === 1")
        page.emulate_media(media="print")
        boxes = page.evaluate("[...document.querySelectorAll('.chart')].map((one) => one.clientHeight)")
        assert boxes == found["heights"], "a chart reaches into what stands below it"


def read_order(page) -> list[str]:
    return page.evaluate("page.runs.map((run) => run.name)")


def test_a_family_of_one_unfinished_run_without_a_step_has_a_page(writer, opened, tmp_path):
    writer.plan(("+variant=standard", "stage=basic"))
    writer.write("basic standard", steps=0)
    path = tmp_path / "report.html"
    path.write_text(page(read_runs(writer.runs, "demo"), "now"), encoding="utf-8")
    with opened(path) as shown_page:
        shown_page.click(".card")
        assert "unfinished, 0%" in shown_page.inner_text(".view.shown")
