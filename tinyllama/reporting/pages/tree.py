"""The family tree as nested lists of links, which page.css draws. Pure."""

from tinyllama.reporting.pages.family import Family, Run
from tinyllama.reporting.pages.markup import Markup, element, joined
from tinyllama.units import format_tokens


def tree(family: Family) -> Markup:
    """A link for each run, its children in a list behind it."""
    roots = element("ul", *(_branch(family, run, 1) for run in family.roots), role="tree", aria_label="Runs")
    whole = element("a", "The whole family", href="#family", class_="whole", data_view="family")
    return element("nav", whole, element("div", roots, class_="scroll"), class_="tree", aria_label="Family tree")


def _branch(family: Family, run: Run, level: int) -> Markup:
    children = family.children(run)
    below = element("ul", *(_branch(family, child, level + 1) for child in children), role="group")
    parent = family.parent(run)
    forks = parent is not None and run.start_tokens < parent.end_tokens
    return element(
        "li", _card(family, run, level), below if children else "", role="none", class_="fork" if forks else None
    )


def _card(family: Family, run: Run, level: int) -> Markup:
    loss = run.steps.last("loss")
    text = [
        element("span", run.stage, element("span", status(run), class_=f"status {_kind(run)}"), class_="stage"),
        element("span", *(swatch(family, name) for name in run.variants), class_="who"),
        element("span", _mix(run), class_="mix"),
        element("span", run.digest[:12], class_="digest"),
        element(
            "span",
            f"{format_tokens(run.trained_tokens)} tokens",
            element("span", f"loss {loss:.3f}" if loss is not None else "no loss yet"),
            class_="figures",
        ),
        _life(family, run),
    ]
    label = f"{family.title(run)}, {status(run)}, {format_tokens(run.trained_tokens)} tokens"
    return element(
        "a", *text, href=f"#{run.name}", class_="card", role="treeitem", aria_level=str(level), aria_label=label,
        data_view=run.name, tabindex="-1" if level > 1 else "0",
    )  # fmt: skip


def swatch(family: Family, variant: str) -> Markup:
    """A variant's name beside its colour."""
    colour = f"--colour: var(--variant-{family.variants.index(variant) % 6})"
    return element("span", element("i", style=colour), variant, class_="swatch")


def status(run: Run) -> str:
    if run.finished:
        return "done"
    share = run.trained_tokens / (run.end_tokens - run.start_tokens)
    return f"unfinished, {share:.0%}"


def origin(family: Family, run: Run) -> Markup:
    """What it continues, with a link where that is here."""
    parent = family.parent(run)
    if parent is not None:
        link = element("a", parent.name, href=f"#{parent.name}", data_view=parent.name)
        where = "" if run.start_tokens == parent.end_tokens else f" at {format_tokens(run.start_tokens)} tokens"
        return joined(link, where)
    if run.parent is not None:
        return joined(f"{run.parent[:12]}, which is not here")
    return joined("Hugging Face weights" if run.meaning.get("parent") else "random weights")


def _mix(run: Run) -> str:
    """What its mixture comes to at the end of the ramp."""
    weights = {name: each["weight_end"] for name, each in run.plan["corpora"].items()}
    return ", ".join(f"{name} {weight:.0%}" for name, weight in weights.items() if weight)


def _kind(run: Run) -> str:
    return "done" if run.finished else "unfinished"


def _life(family: Family, run: Run) -> Markup:
    """A bar for the longest life of the family, and on it the part that the run trains."""
    longest = max(other.end_tokens for other in family.runs)
    left, width = run.start_tokens / longest, run.trained_tokens / longest
    colour = "--shared" if len(run.variants) > 1 else f"--variant-{family.variants.index(run.variants[0]) % 6}"
    style = f"left: {left:.2%}; width: {width:.2%}; background: var({colour})"
    return element("span", element("span", style=style), class_="life", aria_hidden="true")
