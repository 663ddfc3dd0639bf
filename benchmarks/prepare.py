"""How fast raw text becomes samples, on one core, beside what others do with the same text and the same model.

    python benchmarks/prepare.py [--model tokenizer.model] [--json]

The text is the demo's: English, code and Chinese, each repeated to 8 MB of one .jsonl file. Without --model a
sentencepiece model of 32,000 pieces is trained on it. Each method runs in a process of its own; what is compared is the
CPU time of it and its children, once all is imported. litdata and datatrove take part where they are installed;
datatrove's tokenizer is Hugging Face's, converted from the same model.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tinyllama.config.schema import CorpusConfig, TokenizerConfig
from tinyllama.data.listing import RawFile, find_files
from tinyllama.data.pack import pack
from tinyllama.data.readers import Findings, read_documents
from tinyllama.data.recipe import Recipe
from tinyllama.data.sources.raw import write_raw_corpora
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer

SEQ_LEN, SHARD_SAMPLES = 2048, 2048
TEXTS = {
    "English": ("slimpajama/**/*.jsonl.zst", "text"),
    "code": ("starcoder/**/*.parquet", "content"),
    "Chinese": ("skypile/**/*.jsonl", "text"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a sentencepiece model")
    parser.add_argument("--pieces", type=int, default=32_000, help="of the model that is trained without one")
    parser.add_argument("--megabytes", type=float, default=8, help="of each text")
    parser.add_argument("--texts", type=lambda names: names.split(","), default=list(TEXTS), metavar="A,B")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        print(json.dumps(measured(options.method, options.input, options.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder), options.texts, options.megabytes)
        model = options.model or trained(Path(folder), inputs, options.pieces)
        result = {
            text: {method: elsewhere(method, path, model) for method in METHODS if installed(method)}
            for text, path in inputs.items()
        }
    print(json.dumps(result) if options.json else table(result))


def write_inputs(folder: Path, texts: list[str], megabytes: float) -> dict[str, Path]:
    write_raw_corpora(folder)
    inputs = {}
    for name in texts:
        files, field = TEXTS[name]
        source = corpus([str(folder / "raw" / files)], field)
        lines = [
            json.dumps({"text": document.text}, ensure_ascii=False).encode() + b"\n"
            for file in find_files(source)
            for document in read_documents(Path(file.path), file, source, Findings())
        ]
        once = b"".join(lines)
        inputs[name] = folder / f"{name}.jsonl"
        inputs[name].write_bytes(once * (1 + int(megabytes * 10**6) // len(once)))
    return inputs


def trained(folder: Path, inputs: dict[str, Path], pieces: int) -> Path:
    share = 2 * 10**6
    texts = (text for path in inputs.values() for text in texts_of(path.read_bytes()[:share].rpartition(b"\n")[0]))
    train_tokenizer(texts, folder / "trained.model", pieces)
    return folder / "trained.model"


def texts_of(lines: bytes) -> Iterator[str]:
    return (json.loads(line)["text"] for line in lines.splitlines())


def corpus(files: list[str], field: str = "text") -> CorpusConfig:
    return CorpusConfig(
        name="benchmark", files=files, text_field=field, tokens=1, max_epochs=None, validation_fraction=0.0
    )


# ---------------------------------------------------------------- the methods: (input, model, folder) -> tokens


def ours(path: Path, model: Path, folder: Path, fast: bool = False) -> int:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(model)).vocab_size()
    config = TokenizerConfig(name="benchmark", path=str(model), vocab_size=pieces)
    tokenizer = Tokenizer.load(config)
    recipe = Recipe(corpus([str(path)]), config, tokenizer.digest, SEQ_LEN, SHARD_SAMPLES)
    return pack(recipe, [RawFile.listed(str(path))], folder, tokenizer, fast).tokens


def ours_by_kitoken(path: Path, model: Path, folder: Path) -> int:
    return ours(path, model, folder, fast=True)


def document_at_a_time(path: Path, model: Path, folder: Path) -> int:
    """The method of the original's script: encode a document, append it to a chunk of 16-bit ids, write full chunks."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(model))
    chunk, filled, number, tokens = np.zeros((SEQ_LEN + 1) * 1024, np.uint16), 0, 0, 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            ids = np.array([*pieces.encode(json.loads(line)["text"]), pieces.eos_id()], np.uint16)
            tokens += len(ids)
            while filled + len(ids) > len(chunk):
                room = len(chunk) - filled
                chunk[filled:] = ids[:room]
                chunk.tofile(folder / f"{number}.bin")
                ids, filled, number = ids[room:], 0, number + 1
            chunk[filled : filled + len(ids)] = ids
            filled += len(ids)
    chunk[:filled].tofile(folder / f"{number}.bin")
    return tokens


def by_litdata(path: Path, model: Path, folder: Path) -> int:
    from litdata import TokensLoader, optimize

    optimize(
        _Encoding(str(model)),
        [str(path)],
        output_dir=str(folder / "out"),
        chunk_bytes="64MB",
        num_workers=1,
        item_loader=TokensLoader(),
        start_method="fork",
        verbose=False,
    )
    index = json.loads((folder / "out" / "index.json").read_text())
    return sum(chunk["dim"] for chunk in index["chunks"])


class _Encoding:
    """litgpt's recipe for litdata: a tensor of ids for each document."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, path: str) -> Iterator[object]:
        import torch
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=self.model)
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield torch.tensor([*pieces.encode(json.loads(line)["text"]), pieces.eos_id()], dtype=torch.int32)


def by_datatrove(path: Path, model: Path, folder: Path) -> int:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    converted = model.with_suffix(".tokenizer.json")
    executor = LocalPipelineExecutor(
        [
            JsonlReader(str(path.parent), glob_pattern=path.name),
            DocumentTokenizer(str(folder / "out"), str(converted), eos_token="</s>", shuffle_documents=False),
        ],
        logging_dir=str(folder / "logs"),
    )
    executor.run()
    return sum(file.stat().st_size for file in (folder / "out").glob("*.ds")) // 2


METHODS: dict[str, Callable[[Path, Path, Path], int]] = {
    "sentencepiece, ours": ours,
    "kitoken, ours": ours_by_kitoken,
    "a document at a time": document_at_a_time,
    "litdata": by_litdata,
    "datatrove": by_datatrove,
}
NEEDED = {"kitoken, ours": "kitoken", "litdata": "litdata", "datatrove": "datatrove"}


def installed(method: str) -> bool:
    return method not in NEEDED or importlib.util.find_spec(NEEDED[method]) is not None


def elsewhere(method: str, path: Path, model: Path) -> dict[str, float]:
    if method == "datatrove" and not model.with_suffix(".tokenizer.json").exists():
        convert(model)
    command = [sys.executable, __file__, "--method", method, "--input", str(path), "--model", str(model)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=quiet, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def convert(model: Path) -> None:
    """The sentencepiece model as Hugging Face's tokenizers read it."""
    from transformers.convert_slow_tokenizer import LlamaConverter
    from transformers.models.llama.tokenization_llama import LlamaTokenizer

    slow = LlamaTokenizer(str(model), legacy=False, add_bos_token=False)
    LlamaConverter(slow).converted().save(str(model.with_suffix(".tokenizer.json")))


def measured(method: str, path: Path, model: Path) -> dict[str, float]:
    """Tokens, CPU seconds and seconds; a tenth of the text goes ahead, so that all is imported."""
    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder, "some.jsonl")
        some.write_bytes(path.read_bytes()[: 10**5].rpartition(b"\n")[0] + b"\n")
        for name in ("warm", "cold"):
            Path(folder, name).mkdir()
        METHODS[method](some, model, Path(folder, "warm"))
        cpu, begin = cpu_seconds(), time.perf_counter()
        tokens = METHODS[method](path, model, Path(folder, "cold"))
        return {"tokens": tokens, "cpu_seconds": cpu_seconds() - cpu, "seconds": time.perf_counter() - begin}


def cpu_seconds() -> float:
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def table(result: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [f"{'M tokens per CPU second':<26}" + "".join(f"{text:>22}" for text in result)]
    best = {
        text: max(rate(each) for name, each in found.items() if "ours" not in name) for text, found in result.items()
    }
    for method in next(iter(result.values())):
        cells = (
            f"{rate(found[method]):.2f} ({rate(found[method]) / best[text]:.2f})" for text, found in result.items()
        )
        lines.append(f"{method:<26}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join([*lines, "In brackets: against the best of the others. Tokens: "] + [
        f"  {text}: " + ", ".join(f"{method} {each['tokens']:,}" for method, each in found.items())
        for text, found in result.items()
    ])  # fmt: skip


def rate(measurement: dict[str, float]) -> float:
    return measurement["tokens"] / measurement["cpu_seconds"] / 1e6


if __name__ == "__main__":
    main()
