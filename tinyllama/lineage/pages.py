"""What a person reads in MLflow's own pages about a run's place in the tree: markdown with links. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A run on the way from the root of the tree to a leaf."""

    digest: str
    stage: str | None = None
    """None while MLflow does not know the run; it may arrive later."""
    variants: str = ""
    run_id: str | None = None
    page: str = ""
    """Of its run, relative to wherever MLflow's pages are served."""
    version: str | None = None
    """Of the family's model, once the stage is finished."""
    version_page: str = ""

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.digest[:12]}"

    @property
    def link(self) -> str:
        return f"[{self.name}]({self.page})" if self.stage else f"`{self.digest[:12]}` (not recorded here yet)"

    @property
    def version_link(self) -> str:
        return f"[version {self.version}]({self.version_page})"


def run_page(experiment: str, run: str) -> str:
    return f"#/experiments/{experiment}/runs/{run}"


def version_page(model: str, version: str) -> str:
    return f"#/models/{model}/versions/{version}"


def run_note(path: Sequence[Place], directory: str) -> str:
    """The description of the last run of `path`, whose ancestors come before it, the root first."""
    *_, here = path
    sentences = [f"Stage **{here.stage}** of {here.variants}. Its files: `{directory}`"]
    if here.version is not None:
        sentences.append(f"Finished as {here.version_link} of the family's model.")
    return "\n\n".join([_way(path), *sentences])


def version_note(path: Sequence[Place]) -> str:
    """The description of the version that the last run of `path` has become."""
    *ancestors, here = path
    origin = "from the start"
    if ancestors:
        parent = ancestors[-1]
        version = f" ({parent.version_link})" if parent.version is not None else ""
        origin = f"continued from {parent.link}{version}"
    return f"Stage **{here.stage}** of {here.variants}, {origin}. Trained by {here.link}.\n\n{_way(path)}"


def _way(path: Sequence[Place]) -> str:
    *ancestors, here = path
    steps = [place.link + (f" ({place.version_link})" if place.version is not None else "") for place in ancestors]
    return "From the root: " + " → ".join([*steps, f"**{here.name}**"])
