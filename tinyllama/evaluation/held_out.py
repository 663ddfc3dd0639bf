"""Texts that no run was trained on, and questions made of them: which of four endings is the one that was written?

They are made of text and cut at characters, so that models of any tokenizer are asked the same.
"""

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import chosen_folder
from tinyllama.data.loader import validation_loader
from tinyllama.data.manifest import VALIDATION, Manifest, read_manifest
from tinyllama.data.shards import INDEX
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.data.versions import version_name
from tinyllama.evaluation.suites import HELD_OUT
from tinyllama.world import World

CONTEXT, ENDING = 96, 32
"""Characters; an ending begins at a space if there is one near."""
ENDINGS, QUESTIONS, PER_DOCUMENT = 4, 200, 8
SAMPLES = 2048
"""Held-out samples that are read for them."""
EDITION = 1
"""Goes up when the same texts would give other questions."""

_TASK = """\
# Made from {source}.
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: questions.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: endings
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: {edition}
"""


@dataclass(frozen=True)
class HeldOut:
    """A prepared corpus with documents held out."""

    name: str
    folder: Path
    """Of the version."""
    manifest: Manifest

    @property
    def task(self) -> str:
        return f"{HELD_OUT}_{self.name}"


def held_out_corpora(config: RunConfig) -> list[HeldOut]:
    """Those of the configuration whose held-out samples are on this machine.

    Raises:
        ConfigError: no version, or more than one, is what corpora.NAME.version names.
        DamageError: a manifest cannot be understood.
    """
    folders = {name: chosen_folder(config, name) for name in config.corpora}
    return [found for name, folder in folders.items() if (found := find_held_out(name, folder)) is not None]


def find_held_out(name: str, folder: Path) -> HeldOut | None:
    """What is held out of the corpus in a version's folder; None if that is nothing, or lies elsewhere."""
    manifest = read_manifest(folder)
    if manifest is None or not manifest.validation.samples or not (folder / VALIDATION / INDEX).is_file():
        return None
    return HeldOut(name, folder, manifest)


def make_tasks(corpora: Sequence[HeldOut], data: Path, tokenizer: Tokenizer, seed: int = 0) -> dict[str, Path]:
    """The folder of each corpus' task, in lm-eval's YAML, by the task's name; what stands is not made again."""
    folders = {}
    for corpus in corpora:
        version = version_name(corpus.name, corpus.manifest.fingerprint)
        folder = data / HELD_OUT / f"{version}-{EDITION}"
        if not folder.is_dir():
            questions = make_questions(documents(corpus, tokenizer, SAMPLES), f"{seed} {corpus.name}")
            if len(questions) < ENDINGS:  # too little is held out
                continue
            write_task(folder, corpus.task, f"held-out documents of {corpus.name}", questions)
        folders[corpus.task] = folder
    return folders


def make_questions(texts: Sequence[str], seed: str) -> list[dict[str, Any]]:
    """As rows of lm-eval's data: context, endings, label. Wrong endings are right ones of other documents."""
    passages = list(islice(_passages(texts), QUESTIONS))
    dice, questions = random.Random(seed), []
    for document, context, ending in passages:
        others = [each for number, _, each in passages if number != document and each != ending]
        wrong = sorted(set(others))
        if len(wrong) < ENDINGS - 1:
            continue
        endings = [ending, *dice.sample(wrong, ENDINGS - 1)]
        dice.shuffle(endings)
        questions.append({"context": context, "endings": endings, "label": endings.index(ending)})
    return questions


def documents(corpus: HeldOut, tokenizer: Tokenizer, samples: int) -> list[str]:
    """The held-out documents as text, as far as the first samples hold them."""
    pieces: list[list[int]] = [[]]
    for row, follows in _stream(corpus, samples):
        if not follows:
            pieces.append([])
        for token in row:
            if token == tokenizer.eos:
                pieces.append([])
            else:
                pieces[-1].append(token)
    return [tokenizer.decode(piece) for piece in pieces if piece]


def _stream(corpus: HeldOut, samples: int) -> Iterator[tuple[list[int], bool]]:
    """Tokens of the samples, none twice, each with whether it goes on where the one before it ended."""
    last = None
    for row in windows(corpus.folder, samples, corpus.manifest.seq_len, 64):
        for tokens in row.tolist():
            follows = last is None or tokens[0] == last
            yield (tokens if last is None or not follows else tokens[1:]), follows
            last = tokens[-1]


def windows(folder: Path, samples: int, seq_len: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """The first held-out samples of a version, as training's validation reads them: [up to batch, seq_len + 1]."""
    loader = validation_loader(
        folder / VALIDATION, samples=samples, micro_batch=batch, world=World(0, 1), seq_len=seq_len
    )
    for micro in loader:
        yield micro.tokens.numpy()


def _passages(texts: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Document, context and ending; the first of each document, then the second ones, and so on."""
    for round_ in range(PER_DOCUMENT):
        for number, text in enumerate(texts):
            begin = round_ * (CONTEXT + ENDING)
            cut = begin + CONTEXT
            space = text.find(" ", cut, cut + ENDING // 2)
            cut = space if space >= 0 else cut
            ending = text[cut : cut + ENDING]
            if len(ending) == ENDING and ending.strip() and text[begin:cut].strip():
                yield number, text[begin:cut], ending


def write_task(folder: Path, task: str, source: str, questions: Sequence[Mapping[str, Any]]) -> None:
    """Whole or not at all; whoever writes the same at the same time does no harm."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{random.getrandbits(48):x}")
    aside.mkdir()
    lines = (json.dumps(question, ensure_ascii=False) for question in questions)
    (aside / "questions.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (aside / "task.yaml").write_text(_TASK.format(source=source, task=task, edition=EDITION), encoding="utf-8")
    try:
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside)
        if not folder.is_dir():
            raise
