"""Families of run directories, written by what writes the real ones; and a headless Chromium that has no network."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.checkpoint.manifest import Checkpoint, write_manifest
from tinyllama.config.app import compose_path, prepare_hydra
from tinyllama.config.location import conf_folder
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.progress import Progress
from tinyllama.planning.tree import Job, Node, grow
from tinyllama.training.description import write_plan
from tinyllama.training.journal import metrics_of, open_journal, write_line
from tinyllama.training.metrics import StepReport

NAMES = ("slimpajama", "starcoder", "proof_pile_2", "skypile")
PREPARED = Inventory({name: Corpus(name, f"of {name}", (64,) * 400) for name in NAMES}, "of the tokenizer")
FAMILY = [(f"+variant={variant}", f"stage={stage}") for variant in ("standard", "math_code", "chinese")
          for stage in ("basic", "continual", "cooldown")]  # fmt: skip


@dataclass
class RunsWriter:
    """Writes the directories of planned runs."""

    runs: Path
    nodes: dict[str, Node] = field(default_factory=dict)
    """By "stage variant", or "stage" alone where variants share it."""

    def plan(self, *asked: tuple[str, ...]) -> None:
        prepare_hydra()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            paths = {job: compose_path(["+scale=demo", f"paths.runs={self.runs}", *job]) for job in asked}
        for node in grow(Job(job, path, make_plan(path, PREPARED)) for job, path in paths.items()):
            shared = len(node.variants) > 1
            self.nodes[node.plan.stage if shared else f"{node.plan.stage} {node.variants[0]}"] = node

    def folder(self, name: str) -> RunFolder:
        return RunFolder.of(self.runs, self.nodes[name].plan)

    def write(
        self,
        name: str,
        steps: int | None = None,
        skipped: Mapping[int, tuple[str, float]] | None = None,
        unusual: Mapping[int, str] | None = None,
        pause_before: int | None = None,
    ) -> RunFolder:
        """A run up to a step, or to its end.

        Args:
            skipped: why, and the loss.
            pause_before: a step that comes two minutes late.
        """
        node, plan, folder = self.nodes[name], self.nodes[name].plan, self.folder(name)
        steps = plan.steps if steps is None else steps
        folder.path.mkdir(parents=True)
        write_plan(node.config, plan, node.variants, Status.done if steps == plan.steps else Status.partial)
        folder.identity.write_text(json.dumps({"digest": plan.digest, "meaning": plan.meaning}))
        file = open_journal(folder.metrics, 0)
        for step in range(1, steps + 1):
            report = _report(plan, step, (skipped or {}).get(step), (unusual or {}).get(step))
            late = 120 if pause_before is not None and step >= pause_before else 0
            write_line(file, metrics_of(report) | {"time": 1.79e9 + plan.start_tokens / 1000 + step + late})
        file.close()
        end = Progress(steps, steps * plan.batch_samples, plan.start_tokens + steps * plan.batch_tokens)
        checkpoint = folder.checkpoint(end.tokens)
        checkpoint.mkdir(parents=True)
        write_manifest(Checkpoint(checkpoint, plan.digest, end, "", 2, {}, {}))
        if steps == plan.steps:
            folder.done.write_text("{}\n")
        return folder

    def evaluate(
        self, name: str, values: Mapping[str, float], published: Mapping[str, float], questions: int = 40
    ) -> None:
        folder = self.folder(name)
        (tokens,) = folder.checkpoint_tokens()
        document = {
            "model": folder.path.name, "digest": self.nodes[name].plan.digest, "tokens": tokens,
            "tasks": {task: {"metric": "acc_norm", "value": value, "stderr": 1.25, "published": published.get(task),
                             "samples": questions} for task, value in values.items()},
            "suites": {"commonsense": sum(values.values()) / len(values)},
            "perplexity": {"skypile": {"loss": 3.25, "perplexity": 25.79, "bits_per_byte": 1.4375, "tokens": 1,
                                       "bytes": 1}},
            "versions": {},
        }  # fmt: skip
        folder.evaluation(tokens).parent.mkdir(exist_ok=True)
        folder.evaluation(tokens).write_text(json.dumps(document))


def _report(plan, step: int, skipped: tuple[str, float] | None, unusual: str | None) -> StepReport:
    def progress(of: int) -> Progress:
        return Progress(of, of * plan.batch_samples, plan.start_tokens + of * plan.batch_tokens)

    before, after = (plan.order.draws_before(of * plan.batch_samples) for of in (step - 1, step))
    loss = 4 + int(plan.digest[:2], 16) / 1000 + 4000 / (after_tokens := progress(step).tokens) + (step % 5) / 100
    return StepReport(
        before=progress(step - 1),
        progress=progress(step),
        learning_rate=plan.schedule(after_tokens),
        loss=skipped[1] if skipped else loss,
        grad_norm=1 + 1 / step,
        applied=skipped is None,
        objection=skipped[0] if skipped else unusual,
        stopping=False,
        seconds=1.0,
        data_wait=0.001 * (step % 3),
        tokens_per_second=float(plan.batch_tokens),
        mfu=0.4,
        corpus_losses={name: loss + place for place, name in enumerate(plan.corpora)},
        corpus_samples={name: after[name] - before.get(name, 0) for name in plan.corpora},
        validation={name: loss + 1 + place for place, name in enumerate(NAMES)} if step % 2 == 0 else {},
    )


@pytest.fixture
def writer(tmp_path: Path) -> RunsWriter:
    return RunsWriter(tmp_path / "runs")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> RunsWriter:
    """Three stages of three variants, of which the last is unfinished; with all that can happen to a run."""
    writer = RunsWriter(tmp_path_factory.mktemp("family") / "runs")
    writer.plan(*FAMILY)
    for name in writer.nodes:
        if name == "basic":
            writer.write(name, unusual={20: "gradient norm 4.1 is 9.2 deviations above its usual 1.1"})
        elif name == "continual chinese":
            skipped = {7: ("loss 9.75 is 11.2 deviations above its usual 5", 9.75), 9: ("its </script> is bad", NAN)}
            writer.write(name, skipped=skipped, pause_before=12)
        else:
            writer.write(name, steps=3 if name == "cooldown chinese" else None)
    writer.evaluate("basic", {"hellaswag": 26.0, "piqa": 52.0}, {"hellaswag": 61.47})
    writer.evaluate("continual chinese", {"hellaswag": 27.5, "piqa": 51.0}, {"hellaswag": 58.23})
    writer.evaluate("cooldown math_code", {"hellaswag": 25.0}, {})  # its parent was asked nothing
    return writer


NAN = float("nan")


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A real Chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        missing = "Chromium is not installed here (Debian: apt-get install chromium)"
        assert os.environ.get("TINYLLAMA_REQUIRE_CHROMIUM") != "1", missing
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def opened(browser) -> Iterator[Callable[..., object]]:
    """with opened(FILE, hash="#family", width=1280, scheme="light") as page: the page, its charts drawn.

    Whatever it says on the console, throws or asks of a network fails the test. A page that was opened before is shown
    again: unpacking plotly is most of what opening takes.
    """
    pages: dict[tuple, tuple] = {}

    def open_new(path: Path, hash: str, width: int, scheme: str) -> tuple:
        complaints: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: _only_files(request.url, complaints))
        page.goto(f"{path.absolute().as_uri()}{hash}")
        page.wait_for_selector("html[data-ready]", state="attached")
        return page, complaints

    @contextmanager
    def open_page(path: Path, hash: str = "", width: int = 1280, scheme: str = "light") -> Iterator[object]:
        asked = (path, width, scheme)
        if asked not in pages:
            pages[asked] = open_new(path, hash, width, scheme)
        page, complaints = pages[asked]
        page.evaluate("(hash) => { document.activeElement.blur(); go(hash || 'family'); scrollTo(0, 0); }", hash[1:])
        yield page
        assert complaints == []

    yield open_page
    for page, _ in pages.values():
        page.context.close()


def _only_files(address: str, complaints: list[str]) -> None:
    if not address.startswith(("file:", "data:", "blob:")):
        complaints.append(f"request: {address}")


def lines_of(path: Path) -> Sequence[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
