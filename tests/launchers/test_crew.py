"""The crew at real processes that do not train: who starts when, with which GPUs, and what is told of each end."""

import os
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from hydra_plugins.tinyllama_launchers._crew import Crew, gpu_names
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.errors import ConfigError, DamageError, Stopped
from tinyllama.reporting.family import End

VARIANTS = ("standard", "math_code", "chinese")


def label(node) -> str:
    return f"{node.plan.stage} {node.config.variant}"


def log_of(node) -> Path:
    return RunFolder.of(node.config.paths.runs, node.plan).log


class Notes:
    """What the nodes at work write down, in the order in which they do."""

    def __init__(self, path: Path):
        self._path = path

    def add(self, *words: str) -> None:
        with self._path.open("a") as file:
            file.write("|".join(words) + "\n")

    def all(self) -> list[list[str]]:
        return [line.split("|") for line in self._path.read_text().splitlines()] if self._path.exists() else []

    def until(self, count: int, word: str) -> None:
        """Until so many have written this word."""
        deadline = time.monotonic() + 30
        while sum(note[0] == word for note in self.all()) < count:
            assert time.monotonic() < deadline, self.all()
            time.sleep(0.01)


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "notes")


@pytest.fixture
def family(tree):
    """basic, then a continual stage and a cooldown of each variant; family(chinese=4) gives it so many ranks."""

    def build(**ranks: int):
        return tree(
            *((f"+variant={name}", f"stage={stage}", f"cluster.processes={ranks.get(name, 1)}", "cluster.micro_batch=1")
              for name in VARIANTS for stage in ("basic", "continual", "cooldown"))
        )  # fmt: skip

    return build


def outcomes_of(nodes, work, jobs, gpus=()):
    """By label, and the crew. What is printed goes to the file descriptors, as it does outside of pytest."""
    crew = Crew(nodes, work, jobs, gpus)
    out, err = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    with redirect_stdout(out), redirect_stderr(err):
        outcomes = crew.run()
    return {label(node): outcomes[node.plan.digest] for node in nodes}, crew


@pytest.mark.slow
def test_siblings_run_at_once_each_on_gpus_of_its_own_once_their_parent_is_done(family, notes):
    nodes = family(chinese=2)
    gpus = ("5", "GPU-1f", "MIG-2e/1/0", "7")

    def work(node, share):
        notes.add("begins", label(node), os.environ["CUDA_VISIBLE_DEVICES"])
        if node.plan.stage == "continual":
            notes.until(4, "begins")  # basic and all three are there together, or never
        notes.add("ends", label(node))

    outcomes, _ = outcomes_of(nodes, work, jobs=4, gpus=gpus)
    assert {outcome.end for outcome in outcomes.values()} == {End.done}
    told = notes.all()
    order = [words[:2] for words in told]
    for variant in VARIANTS:
        assert order.index(["ends", "basic standard"]) < order.index(["begins", f"continual {variant}"])
        assert order.index(["ends", f"continual {variant}"]) < order.index(["begins", f"cooldown {variant}"])
    held = {words[1]: words[2].split(",") for words in told if words[0] == "begins"}
    together = [name for variant in VARIANTS for name in held[f"continual {variant}"]]
    assert sorted(together) == sorted(gpus)
    assert [len(held[f"continual {variant}"]) for variant in VARIANTS] == [1, 1, 2]


@pytest.mark.slow
def test_a_node_that_needs_every_gpu_waits_until_they_are_free_and_nobody_overtakes_it(tree, notes):
    nodes = tree(
        *((f"+variant={name}", "stage=continual", f"cluster.processes={ranks}", "cluster.micro_batch=1")
          for name, ranks in (("standard", 1), ("math_code", 4), ("chinese", 1)))
    )  # fmt: skip
    assert nodes[0].overrides is None, "basic counts as done"

    def work(node, share):
        notes.add("begins", label(node))
        time.sleep(0.3)  # three GPUs are free meanwhile, enough for the third
        notes.add("ends", label(node))

    outcomes_of(nodes, work, jobs=3, gpus=("0", "1", "2", "3"))
    assert notes.all() == [
        [word, f"continual {variant}"]
        for variant in ("standard", "math_code", "chinese")
        for word in ("begins", "ends")
    ]


@pytest.mark.slow
def test_no_more_than_so_many_jobs_run_at_once_and_they_share_the_cores(family, notes):
    threads = {}

    def work(node, share):
        notes.add("begins", label(node), str(share.threads), str(share.alone))
        time.sleep(0.5)
        notes.add("ends", label(node))

    nodes = family()
    outcomes, _ = outcomes_of(nodes, work, jobs=2)
    assert len(outcomes) == 7
    at_work = most = 0
    for word, *rest in notes.all():
        at_work += 1 if word == "begins" else -1
        most = max(most, at_work)
        if word == "begins":
            threads[rest[0]] = int(rest[1])
            assert rest[2] == "False"
    assert most == 2
    cores = len(os.sched_getaffinity(0))
    assert threads["basic standard"] == cores
    assert threads["continual standard"] == threads["continual math_code"] == max(1, cores // 2)


def test_each_end_is_told_in_one_line_with_its_log_and_names_whom_it_held_up(family, capfd):
    def work(node, share):
        print(f"{label(node)} says something")
        match label(node):
            case "continual standard":
                raise DamageError("the shard is damaged; prepare it again\n  python -m tinyllama.prepare")
            case "continual math_code":
                os.kill(os.getpid(), signal.SIGKILL)
            case "cooldown chinese":
                raise ValueError("a bug\nof two lines")

    nodes = family()
    outcomes, crew = outcomes_of(nodes, work, jobs=2)
    names = {label(node): node for node in nodes}
    damaged, killed, broken = (outcomes[name] for name in ("continual standard", "continual math_code",
                                                           "cooldown chinese"))  # fmt: skip
    assert not crew.stopping
    assert (damaged.end, damaged.why, damaged.exit_code) == (End.failed, "the shard is damaged", 3)
    assert (killed.end, killed.exit_code) == (End.failed, 137)
    assert killed.why == "it was killed by SIGKILL (the kernel does so when memory runs out)"
    assert (broken.end, broken.why, broken.exit_code) == (End.failed, "ValueError: a bug", 1)
    assert outcomes["basic standard"].end is outcomes["continual chinese"].end is End.done
    for variant in ("standard", "math_code"):
        held_up = outcomes[f"cooldown {variant}"]
        assert held_up.end is End.not_started
        assert held_up.why == f"{names[f'continual {variant}'].plan.name} failed"
    err = capfd.readouterr().err
    assert "basic standard says something" in err and "continual chinese says something" in err
    assert log_of(nodes[0]).read_text() == "basic standard says something\n"
    assert damaged.log == log_of(names["continual standard"])
    assert damaged.log.read_text().count("error: the shard is damaged; prepare it again") == 1
    assert "killed by SIGKILL" in killed.log.read_text()
    assert "Traceback" in broken.log.read_text() and broken.log.read_text().count("ValueError: a bug") == 1


def test_a_grandchild_is_not_started_because_of_the_ancestor_that_failed(family):
    def work(node, share):
        raise ConfigError("no")

    nodes = family()
    outcomes, _ = outcomes_of(nodes, work, jobs=1)
    assert outcomes["cooldown chinese"].why == outcomes["continual chinese"].why == f"{nodes[0].plan.name} failed"


def test_a_node_alone_has_the_terminal_to_itself_and_its_log_keeps_only_why_it_failed(family, capfd):
    def work(node, share):
        assert share.alone
        print("all of it", file=sys.stderr)
        if node.plan.stage == "continual":
            raise DamageError("the shard is damaged; prepare it again")

    nodes = family()
    outcomes, _ = outcomes_of(nodes, work, jobs=1)
    assert capfd.readouterr().err.count("all of it") == 4
    assert not log_of(nodes[0]).exists()
    (line,) = log_of(nodes[1]).read_text().splitlines()
    assert line.endswith("error: the shard is damaged; prepare it again")


def test_more_output_than_a_pipe_holds_reaches_the_log_whole(tree):
    (node,) = tree(("stage=basic",))

    def work(node, share):
        for number in range(20_000):
            print(number, file=sys.stderr)
        sys.exit(Stopped.exit_code)

    outcomes, _ = outcomes_of([node], work, jobs=2)
    assert outcomes["basic slimpajama"].end is End.stopped
    assert log_of(node).read_text().split() == [str(number) for number in range(20_000)]


def test_a_node_that_stopped_has_no_others_started_after_it(family):
    def work(node, share):
        if node.plan.stage == "continual":
            sys.exit(Stopped.exit_code)

    outcomes, crew = outcomes_of(family(), work, jobs=1)
    assert crew.stopping
    assert outcomes["continual standard"].end is End.stopped
    assert outcomes["continual chinese"].end is End.not_started and outcomes["continual chinese"].why == ""
    assert outcomes["cooldown standard"].why.endswith(" stopped")


@pytest.mark.parametrize(
    "said, names",
    [
        ("4,5, GPU-1f ,MIG-2e/1/0", ("4", "5", "GPU-1f", "MIG-2e/1/0")),
        ("", ()),
        ("-1", ()),
    ],
)
def test_gpus_have_the_names_that_the_environment_gives_them(said, names, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert gpu_names() == names
