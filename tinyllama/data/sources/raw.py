"""Raw corpora in the layouts of their hubs, and the tokenizer that is trained on them."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

from tinyllama.config.schema import CorpusConfig, TokenizerConfig
from tinyllama.data.listing import find_files
from tinyllama.data.readers import Findings, read_documents
from tinyllama.data.reporter import Reporter, silent
from tinyllama.data.sources.chinese import chinese
from tinyllama.data.sources.code import OTHER_LANGUAGES, notebooks, python_modules, sources_in
from tinyllama.data.sources.english import english
from tinyllama.data.sources.mathematics import computer_algebra, explanations, worked_problems
from tinyllama.data.tokenizer import train_tokenizer
from tinyllama.errors import ConfigError

FILES = 4
"""Files that a corpus, or a part of one, is spread over."""
MEGABYTE = 10**6
TOKENIZER_CHARACTERS = 4 * MEGABYTE

Row = dict[str, Any]


def write_raw_corpora(data: Path, progress: Reporter = silent) -> None:
    """Write each raw corpus below `data`/raw that is not there yet.

    Raises:
        ConfigError: this Python installation does not hold enough text.
    """
    for name, write in CORPORA.items():
        folder = data / "raw" / name
        if folder.exists():
            progress(f"{name}: already there", 1, 1)
            continue
        progress(f"{name}: written", 0, 1)
        aside = folder.with_name(f".{name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        write(aside)
        aside.rename(folder)
        progress(f"{name}: written", 1, 1)


def train_on_corpora(tokenizer: TokenizerConfig, corpora: Iterable[CorpusConfig], progress: Reporter = silent) -> None:
    """Train the tokenizer at its configured path on an equal share of every corpus, unless it is there."""
    path, task = Path(tokenizer.path), f"tokenizer {tokenizer.name}: trained"
    if path.exists():
        progress(f"tokenizer {tokenizer.name}: already there", 1, 1)
        return
    progress(task, 0, 1)
    corpora = list(corpora)
    texts = chain.from_iterable(_share(corpus, TOKENIZER_CHARACTERS // len(corpora)) for corpus in corpora)
    train_tokenizer(texts, path, tokenizer.vocab_size)
    progress(task, 1, 1)


def _share(corpus: CorpusConfig, characters: int) -> Iterator[str]:
    """About that many characters of a corpus, the same from each of its files."""
    files = find_files(corpus)
    for file in files:
        left = characters // len(files)
        for document in read_documents(Path(file.path), file, corpus, Findings()):
            yield document.text
            left -= len(document.text)
            if left <= 0:
                break


# ---------------------------------------------------------------- the corpora


def _slimpajama(folder: Path) -> None:
    set_names: dict[str, str] = {}
    prose = ((prose.text, set_names.setdefault(prose.text, prose.set_name))[0] for prose in english())
    texts = list(_take(prose, 6.5 * MEGABYTE, "English"))
    # The real corpus has code too, which conf/corpus/slimpajama.yaml drops.
    code = list(_take((source for _, source in sources_in("javascript")), 0.2 * MEGABYTE))
    set_names |= dict.fromkeys(code, "RedPajamaGithub")
    _write_jsonl(
        folder / "train/chunk1/example_train_{}.jsonl.zst",
        [{"text": text, "meta": {"redpajama_set_name": set_names[text]}} for text in _mixed(texts + code)],
    )


def _starcoder(folder: Path) -> None:
    kinds: dict[str, tuple[Iterator[tuple[str, str]], float, str | None]] = {
        "python": (python_modules(), 6 * MEGABYTE, "Python code"),
        "jupyter-structured-text-clean-dedup": (notebooks(), MEGABYTE, "documented examples"),
    }
    kinds |= {language: (sources_in(language), 0.1 * MEGABYTE, None) for language in OTHER_LANGUAGES}
    for kind, (named, size, required) in kinds.items():
        names: dict[str, str] = {}
        sources = ((source, names.setdefault(source, name))[0] for name, source in named)
        rows = [
            {"max_stars_repo_path": names[source], "id": str(number), "content": source}
            for number, source in enumerate(_take(sources, size, required))
        ]
        _write_parquet(folder / kind / "train-{}-of-{}.parquet", rows)


def _proof_pile_2(folder: Path) -> None:
    parts = {
        "algebraic-stack": list(_take(computer_algebra(), 0.8 * MEGABYTE)),
        "arxiv": list(_take(worked_problems(0), 1.2 * MEGABYTE)),
        "open-web-math": [
            *_take(explanations(), 0.8 * MEGABYTE),
            *_take(worked_problems(1), 0.6 * MEGABYTE),
        ],
    }
    for part, texts in parts.items():
        rows = [{"text": text, "meta": {"source": part}} for text in _mixed(texts)]
        _write_jsonl(folder / part / "train/{}.jsonl.zst", rows)


def _skypile(folder: Path) -> None:
    rows = [{"text": text} for text in _take(chinese(0), 3.3 * MEGABYTE)]
    _write_jsonl(folder / "data/2022-{}_zh_head.jsonl", rows)


CORPORA: Mapping[str, Callable[[Path], None]] = {
    "slimpajama": _slimpajama,
    "starcoder": _starcoder,
    "proof_pile_2": _proof_pile_2,
    "skypile": _skypile,
}


# ---------------------------------------------------------------- taking and writing


def _take(texts: Iterable[str], size: float, required: str | None = None) -> Iterator[str]:
    """Texts, none twice, until they have `size` bytes of UTF-8 together."""
    seen: set[bytes] = set()
    taken = 0
    for text in texts:
        key = sha256(text.encode()).digest()
        if key in seen:
            continue
        seen.add(key)
        yield text
        taken += len(text.encode())
        if taken >= size:
            return
    if required:
        raise ConfigError(
            f"this Python installation holds {taken / MEGABYTE:.1f} MB of {required}, fewer than the "
            f"{size / MEGABYTE:.1f} MB that the demo needs; install the project with its dependencies: make demo"
        )


def _mixed(texts: Iterable[str]) -> list[str]:
    """The texts in an order that has nothing to do with where they come from."""
    return sorted(texts, key=lambda text: sha256(text.encode()).digest())


def _write_jsonl(pattern: Path, rows: Sequence[Row]) -> None:
    """Spread rows over FILES files, whose numbers take the place of {}; compressed where the name says so."""
    pattern.parent.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[number::FILES]).encode()
        content = zstandard.compress(lines) if pattern.suffix == ".zst" else lines
        pattern.with_name(pattern.name.format(number)).write_bytes(content)


def _write_parquet(pattern: Path, rows: Sequence[Row]) -> None:
    """Spread rows over FILES files, named after their number and FILES."""
    pattern.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("max_stars_repo_path", "id", "content")])
    for number in range(FILES):
        table = pyarrow.Table.from_pylist(list(rows[number::FILES]), schema=schema)
        pyarrow.parquet.write_table(table, pattern.with_name(pattern.name.format(f"{number:05d}", f"{FILES:05d}")))
