"""Whether asking a model through our own way costs more than lm-eval's own way does, and gives other numbers.

    python benchmarks/evaluate.py [--layers 8] [--questions 100] [--json]

The weights are random, the questions are made of English prose. One way is that of `evaluate`: a checkpoint's file into
a model in memory. The other is lm-eval's `hf` model on the same weights as a folder in Hugging Face's layout. They take
turns, and who begins; starting (from files to a model that can be asked) is counted by itself. On a CPU the seconds are
those that one thread computed, which other work on the machine disturbs less.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from tinyllama.config.schema import ModelConfig, TokenizerConfig
from tinyllama.data.sources.english import english
from tinyllama.data.tokenizer import train_tokenizer
from tinyllama.engine import tensorfile
from tinyllama.engine.snapshot import file_of
from tinyllama.evaluation.harness import HFLM, Questions, whole_lm
from tinyllama.evaluation.held_out import make_questions, write_task
from tinyllama.evaluation.suites import Benchmark
from tinyllama.model.llama import build_model
from tinyllama.model.transformers import hf_model, hf_tokenizer
from tinyllama.planning.flops import num_parameters

VOCAB_SIZE = 2048
TASK = "prose"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result) if options.json else table(result))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    heads = options.hidden // 64
    config = ModelConfig(
        name="benchmark", vocab_size=VOCAB_SIZE, hidden_size=options.hidden, intermediate_size=3 * options.hidden,
        num_layers=options.layers, num_heads=heads, num_kv_heads=heads, seq_len=256,
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    texts = [prose.text for prose in islice(english(), 400)]
    tokenizer = TokenizerConfig(name="benchmark", path=str(folder / "tokenizer.model"), vocab_size=VOCAB_SIZE)
    train_tokenizer(texts[:100], Path(tokenizer.path), VOCAB_SIZE)
    write_task(
        folder / TASK, TASK, "prose of this installation", make_questions(texts, "benchmark")[: options.questions]
    )
    questions = Questions({TASK: Benchmark(TASK)}, [folder / TASK])

    model = build_model(config, "sdpa", torch.device("cpu"))
    model.initialize(seed=0)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    tensorfile.write(
        file_of(folder, "weights"), shapes, [tensorfile.Piece(n, 0, tensor.flatten()) for n, tensor in state.items()]
    )
    hf_model(state, config, dtype).save_pretrained(folder / "hf")
    hf_tokenizer(Path(tokenizer.path), tokenizer, config.seq_len).save_pretrained(folder / "hf")

    def ours() -> HFLM:
        flat = tensorfile.read(file_of(folder, "weights"), shapes)
        loaded = hf_model({name: tensor.view(shapes[name]) for name, tensor in flat.items()}, config, dtype)
        theirs = hf_tokenizer(Path(tokenizer.path), tokenizer, config.seq_len)
        return whole_lm(loaded.to(device), theirs, batch_size=8)

    def theirs() -> HFLM:
        return HFLM(str(folder / "hf"), device=device.type, dtype=dtype, batch_size=8, softmax_dtype="float32")

    ways: dict[str, Callable[[], HFLM]] = {"ours": ours, "hf": theirs}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    torch.set_num_threads(1)  # several wait for each other in a way that counts as computing
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for turn in range(options.turns):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            begun = clock()
            lm = ways[name]()
            started = clock()
            score = questions.ask(lm, None)[TASK]
            times[name].append((started - begun, clock() - started))
            found[name] = score.metrics
    return {
        "parameters": num_parameters(config),
        "device": device.type,
        "questions": score.samples,
        "same": found["ours"] == found["hf"],
        "start_seconds": {name: statistics.median(start for start, _ in each) for name, each in times.items()},
        "ask_seconds": {name: statistics.median(ask for _, ask in each) for name, each in times.items()},
        "ratio_asking": ratio(times, lambda each: each[1]),
        "ratio_in_all": ratio(times, sum),
    }


def ratio(times: dict[str, list[tuple[float, float]]], part: Callable[[tuple[float, float]], float]) -> float:
    """Ours over theirs, the median over the turns."""
    return statistics.median(part(a) / part(b) for a, b in zip(times["ours"], times["hf"], strict=True))


def table(result: dict[str, Any]) -> str:
    start, ask = result["start_seconds"], result["ask_seconds"]
    return "\n".join(
        [
            f"{result['parameters'] / 1e6:.0f}M parameters on {result['device']}, {result['questions']} questions; the "
            f"numbers are {'the same' if result['same'] else 'DIFFERENT'}",
            f"{'':24}{'ours':>10}{'hf':>10}{'ratio':>10}",
            f"{'start, s':24}{start['ours']:>10.2f}{start['hf']:>10.2f}",
            f"{'asking, s':24}{ask['ours']:>10.2f}{ask['hf']:>10.2f}{result['ratio_asking']:>10.2f}",
            f"{'in all':24}{'':>20}{result['ratio_in_all']:>10.2f}",
        ]
    )


if __name__ == "__main__":
    main()
