"""What may go wrong with what a run left on disk, and what `verify` is to say of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tinyllama.checkpoint.files import write_sealed
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.data.reporter import silent
from tinyllama.proof.checks import examine
from tinyllama.proof.examination import Check, Examination
from tinyllama.proof.record import read_records


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file. The file is a new one: others may share the old one by a hard link."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def without_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    del lines[number]
    path.write_text("".join(lines))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def reseal(path: Path, change: Callable[[dict], object]) -> None:
    """What someone does who knows how manifests are sealed."""
    fields = json.loads(path.read_text())
    del fields["seal"]
    change(fields)
    write_sealed(path, fields)


def manifest(folder: RunFolder, index: int = -1) -> Path:
    return folder.checkpoint(folder.checkpoint_tokens()[index]) / "manifest.json"


def look_at(folder: RunFolder) -> list[Check]:
    """All checks of a run, without the command around them."""
    examination = Examination()
    records = read_records(folder, examination)
    return examination.checks + (examine(records, silent) if examination.checks[-1].ok else [])


def wrong_at(folder: RunFolder) -> list[Check]:
    """The checks that fail."""
    return [check for check in look_at(folder) if not check.ok]


FAULTS = {
    "a flipped byte in a checkpoint": (
        lambda basic, here: flip(manifest(here).parent / "exp_avg.safetensors"),
        "cooldown-* checkpoint",
        "exp_avg.safetensors is damaged",
    ),
    "a flipped byte in the parent's checkpoint": (
        lambda basic, here: flip(manifest(basic, 0).parent / "weights.safetensors"),
        "basic-* checkpoint",
        "weights.safetensors is damaged",
    ),
    "a file of a checkpoint that is gone": (
        lambda basic, here: (manifest(here).parent / "optimizer.json").unlink(),
        "cooldown-* checkpoint",
        "optimizer.json is missing",
    ),
    "a file too many in a checkpoint": (
        lambda basic, here: (manifest(here).parent / "notes.txt").write_text("?"),
        "cooldown-* checkpoint",
        "notes.txt is a file that manifest.json does not name",
    ),
    "a line removed from a checkpoint's manifest": (
        lambda basic, here: without_line(manifest(here), 7),
        "cooldown-* checkpoint",
        "manifest.json",
    ),
    "a position edited in a sealed manifest": (
        lambda basic, here: reseal(manifest(here), lambda fields: fields["progress"].update(step=3)),
        "cooldown-* checkpoint",
        "does not come by",
    ),
    "an order chain edited in a sealed manifest": (
        lambda basic, here: reseal(manifest(basic, 0), lambda fields: fields.update(order_chain="0" * 64)),
        "basic-* order",
        "the order chain is 000000000000",
    ),
    "a line removed from corpora.json": (
        lambda basic, here: without_line(here.corpora, 5),
        "cooldown-* identity",
        "corpora.json",
    ),
    "sizes of shards edited in a sealed corpora.json": (
        lambda basic, here: reseal(
            here.corpora, lambda fields: fields["skypile"].update(shard_samples=[fields["skypile"]["samples"] - 1])
        ),
        "cooldown-* corpora",
        "shard_samples is",
    ),
    "an edited identity": (
        lambda basic, here: edit(here.identity, lambda fields: fields["meaning"].update(seed=5)),
        "lineage",
        "identity.json is damaged",
    ),
    "an identity that is gone": (lambda basic, here: here.identity.unlink(), "lineage", "identity.json"),
    "a setting edited in config.yaml": (
        lambda basic, here: here.config.write_text(here.config.read_text().replace("seed: 3407", "seed: 3408")),
        "cooldown-* identity",
        "seed is 3408",
    ),
    "the length of prepared samples edited in config.yaml": (
        lambda basic, here: here.config.write_text(
            here.config.read_text().replace("packing:\n  seq_len: 32", "packing:\n  seq_len: 64")
        ),
        "cooldown-* identity",
        "packing.seq_len=64",
    ),
    "a config.yaml that cannot be read": (
        lambda basic, here: here.config.write_text("seed: ["),
        "cooldown-* identity",
        "config.yaml cannot be read",
    ),
    "a number edited in plan.json": (
        lambda basic, here: reseal(here.plan, lambda fields: fields.update(steps=5)),
        "cooldown-* plan",
        "steps is 5",
    ),
    "a field removed from plan.json": (
        lambda basic, here: edit(here.plan, lambda fields: fields["corpora"]["skypile"].pop("samples")),
        "cooldown-* plan",
        "plan.json is damaged",
    ),
    "a line removed from metrics.jsonl": (
        lambda basic, here: without_line(basic.metrics, 6),
        "basic-* metrics",
        "step 7 is missing; after step 6 comes step 8",
    ),
    "the last line removed from metrics.jsonl": (
        lambda basic, here: without_line(here.metrics, -1),
        "cooldown-* metrics",
        "step 4 is missing",
    ),
    "a step twice in metrics.jsonl": (
        lambda basic, here: here.metrics.write_text(2 * here.metrics.read_text()),
        "cooldown-* metrics",
        "after step 4 comes step 1",
    ),
    "a line removed from samples.jsonl": (
        lambda basic, here: without_line(basic.samples, 6),
        "basic-* samples",
        "step 7 is missing",
    ),
    "two samples exchanged in samples.jsonl": (
        lambda basic, here: basic.samples.write_text(_exchanged(basic.samples.read_text())),
        "basic-* samples",
        "step 1 was not trained on the samples",
    ),
    "DONE of another end": (
        lambda basic, here: edit(here.done, lambda fields: fields.update(step=3)),
        "cooldown-* end",
        "another end",
    ),
    "DONE with other losses": (
        lambda basic, here: edit(here.done, lambda fields: fields["validation"].update(skypile=1.0)),
        "cooldown-* end",
        "different validation losses",
    ),
    "DONE that is gone": (lambda basic, here: here.done.unlink(), "cooldown-* plan", "status is done"),
    "a final checkpoint that is gone": (
        lambda basic, here: shutil.rmtree(manifest(here).parent),
        "cooldown-* end",
        "the state at the end, is missing",
    ),
    "a parent that is gone": (
        lambda basic, here: shutil.rmtree(basic.path),
        "lineage",
        "which is not in",
    ),
}  # fmt: skip


def _exchanged(text: str) -> str:
    first, rest = text.split("\n", 1)
    step = json.loads(first)
    step["samples"][:2] = step["samples"][1::-1]
    return json.dumps(step) + "\n" + rest
