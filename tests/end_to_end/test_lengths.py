"""A path whose stages read the same prepared samples in halves, whole and joined, interrupted on the way."""

import json
import signal
import time

import numpy as np
import pytest

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.data.inventory import corpus_folders, take_inventory
from tinyllama.data.mds import LocalDataset
from tinyllama.planning.plan import make_plan

PACKED = 32
STAGES = ("basic", "continual", "cooldown")
PATH = [
    "+variant=chinese", "stages.basic.tokens=4096", "stages.continual.tokens=4096", "stages.continual.ramp_tokens=2K",
    "stages.cooldown.tokens=64K", "++stages.continual.seq_len=16", "++stages.cooldown.seq_len=64",
    "schedule.horizon_tokens=73K", "trace=true", "tracking=none",
]  # fmt: skip
"""Whole samples, halves of them, pairs of them."""


@pytest.fixture
def text():
    """text(folder) is what a prepared split predicts, [samples, PACKED]."""
    return lambda folder: np.stack([row["tokens"][1:] for row in LocalDataset(str(folder))]).astype(np.int64)


def trace(folder):
    """[(corpus, draw, sample)] of a run, in order."""
    steps = [json.loads(line) for line in folder.samples.read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    return [tuple(sample) for step in steps for sample in step["samples"]]


def halves_of(stage, sample):
    """Which halves of prepared samples of slimpajama a sample of a stage is made of."""
    first = int(stage.view.first(np.array([sample]), stage.corpora["slimpajama"].shard_samples)[0])
    begin = sample if stage.seq_len == PACKED // 2 else 2 * first
    return set(range(begin, begin + stage.seq_len // (PACKED // 2)))


@pytest.mark.slow
def test_stages_read_on_at_lengths_of_their_own_and_resume_in_another_world(
    small, compose, begin, shell, run, tmp_path, text
):
    result = shell("train", "-m", *small, *PATH, "stage=basic,continual")
    assert result.code == 0, result.err
    process = begin("train", *small, *PATH, "stage=cooldown")
    while process.poll() is None and not list(tmp_path.glob("runs/demo/cooldown-*/metrics.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    result = shell("train", *small, *PATH, "stage=cooldown", "cluster.processes=2", "cluster.workers=1")
    assert result.code == 0 and "goes on after step" in result.err, result.err

    path = compose(*small, *PATH, "stage=cooldown")
    plan = make_plan(path, take_inventory(path))
    traces = {stage.stage: trace(RunFolder.of(tmp_path / "runs", stage)) for stage in plan.path}
    assert [stage.seq_len for stage in plan.path] == [PACKED, 16, 64]
    for stage in plan.path:
        planned = stage.order.samples(np.arange(stage.samples))
        names = [stage.order.names[corpus] for corpus in planned.corpus]
        expected = zip(names, planned.draw.tolist(), planned.sample_id.tolist(), strict=True)
        assert traces[stage.stage] == list(expected)

    # The halves go on in the text where the whole samples stopped: it is that of the prepared order.
    prepared = {name: text(folder / "train") for name, folder in corpus_folders(path[-1], plan.corpora).items()}
    basic, continual, cooldown = (traces[stage] for stage in STAGES)
    whole = [prepared["slimpajama"][sample] for _, _, sample in basic]
    halves = [prepared[name].reshape(-1, 16)[sample] for name, _, sample in continual if name == "slimpajama"]
    read = np.concatenate([*whole, *halves])
    ids = plan.path[0].order.samples(np.arange(-(-len(read) // PACKED))).sample_id
    assert np.array_equal(read, prepared["slimpajama"][ids].ravel()[: len(read)])
    assert len(halves) % 2, "the stage ends in the middle of a prepared sample"
    drawn = [draw for name, draw, _ in cooldown if name == "slimpajama"]
    assert drawn == list(range(drawn[0], drawn[0] + len(drawn)))
    assert (drawn[0] - 1) * 64 < len(read) <= drawn[0] * 64

    # A pair is asked for: the run has seen it itself, and its ancestors what it is made of.
    told = {
        stage.stage: [(draw, halves_of(stage, sample)) for name, draw, sample in traces[stage.stage]
                      if name == "slimpajama"]
        for stage in plan.path
    }  # fmt: skip
    early = set().union(*(halves for _, halves in (*told["basic"], *told["continual"])))
    draw, wanted = next((draw, halves) for draw, halves in told["cooldown"] if halves & early)
    sample = next(each for name, at, each in cooldown if (name, at) == ("slimpajama", draw))
    result = run("verify", *small, *PATH, "stage=cooldown", f"contains=slimpajama:{sample}", "format=json")
    document = json.loads(result.out)
    assert (result.code, document["ok"]) == (0, True), document
    assert [(each["stage"], each["draw"]) for each in document["contains"]["seen"]] == [
        (stage, draw) for stage in STAGES for draw, halves in told[stage] if halves & wanted
    ]
