"""How fast the loader reads, and how it starts on a corpus of a billion samples.

    python benchmarks/loader.py [--json]

Reading is compared with a bare numpy memmap of the same tokens in the same order, and with stock StreamingDataset on
the same shards, shuffled its own way. Waiting is measured beside a step that computes on one core. Start-up is measured
in a process of its own, on made-up shards: the order alone, and with it the store, which reads the index of all shards.
Its memory is the peak over what the imports take.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from tinyllama.data.loader import train_loader
from tinyllama.data.mds import MDSWriter, Stream, StreamingDataset
from tinyllama.data.streaming import ShardStore
from tinyllama.planning.mixture import Mixture
from tinyllama.planning.order import SampleOrder
from tinyllama.world import World

SEQ_LEN, MICRO_BATCH = 2048, 8
SHARES = {"web": 6, "code": 2}
"""Eighths of all samples, in the mixture and on disk."""
WORKERS = (0, 1, 2)
SHARD_SAMPLES = 16_384
SHARD_BYTES = SHARD_SAMPLES * (2 * SEQ_LEN + 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8000, help="that are read; a fifth of them beside a step")
    parser.add_argument("--starts", default="1e8,1e9", help="samples of the corpora that starting is measured on")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--start-up", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start_up:
        print(json.dumps(start_up(options.start_up)))
        return
    rates, waits = reading(options.samples)
    starts = [start_up_elsewhere(int(float(samples))) for samples in options.starts.split(",")]
    result = {"reading": rates, "waiting": waits, "start_up": starts}
    print(json.dumps(result) if options.json else table(result))


def reading(samples: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Tokens per second of each way, once the files are in the page cache; and what `waiting` finds."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder, name) for name in SHARES}
        flat = {name: write(folders[name], share * samples // 8) for name, share in SHARES.items()}
        order = SampleOrder(mixture(), {name: sizes(folders[name]) for name in SHARES}, seed=1)
        stop = samples // MICRO_BATCH * MICRO_BATCH
        some = samples // (5 * MICRO_BATCH) * MICRO_BATCH
        rates = {"memmap": rate(mapped(flat, order, stop))}
        for workers in WORKERS:
            rates[f"loader, {workers} workers"] = rate(loaded(order, folders, stop, workers))
        for workers in WORKERS:
            rates[f"stock, {workers} workers"] = rate(stock(folders, workers))
        waits = {f"{workers} workers": waiting(loaded(order, folders, some, workers)) for workers in WORKERS}
    return rates, waits


def loaded(order: SampleOrder, folders: dict[str, Path], stop: int, workers: int) -> Iterator[torch.Tensor]:
    batches = train_loader(
        order, folders, micro_batch=MICRO_BATCH, world=World(), start=0, stop=stop, workers=workers, run_id="benchmark"
    )
    return (batch.tokens for batch in batches)


def stock(folders: dict[str, Path], workers: int) -> Iterator[torch.Tensor]:
    """StreamingDataset as its manual has it, behind a torch DataLoader; stacked as we do."""
    streams = [Stream(local=str(folder)) for folder in folders.values()]
    dataset = StreamingDataset(streams=streams, batch_size=MICRO_BATCH, shuffle=True)

    def stack(samples: list[dict[str, np.ndarray]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))

    return iter(DataLoader(dataset, batch_size=MICRO_BATCH, num_workers=workers, collate_fn=stack, drop_last=True))


def waiting(batches: Iterator[torch.Tensor]) -> dict[str, float]:
    """Milliseconds of a step of one micro-batch, and of them until it had its tokens."""
    torch.set_num_threads(1)
    matrix = torch.randn(700, 700)
    next(batches)
    waits, began = [], time.perf_counter()
    asked = began
    for _ in batches:
        waits.append(time.perf_counter() - asked)
        torch.linalg.multi_dot([matrix] * 3)
        asked = time.perf_counter()
    each = 1000 / len(waits)
    return {"step": (asked - began) * each, "waiting": sum(waits) * each}


def write(folder: Path, count: int) -> np.memmap:
    """`count` samples of random tokens as MDS shards, and the same in one flat file."""
    tokens = np.random.default_rng(0).integers(0, 32_000, (count, SEQ_LEN + 1), dtype=np.uint16)
    with MDSWriter(out=str(folder), columns={"tokens": "ndarray:uint16"}, hashes=["sha256"]) as writer:
        for sample in tokens:
            writer.write({"tokens": sample})
    tokens.tofile(folder / "flat.bin")
    return np.memmap(folder / "flat.bin", np.uint16, "r", shape=tokens.shape)


def mapped(flat: dict[str, np.memmap], order: SampleOrder, stop: int) -> Iterator[torch.Tensor]:
    """What the loader gives, read from the flat files; the order is looked up before the clock starts."""
    samples = order.samples(np.arange(stop).reshape(-1, MICRO_BATCH))
    corpora = [flat[name] for name in order.names]
    yield torch.empty(0)
    for corpus, sample_id in zip(samples.corpus.tolist(), samples.sample_id.tolist(), strict=True):
        rows = [corpora[which][sample] for which, sample in zip(corpus, sample_id, strict=True)]
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


def rate(batches: Iterator[torch.Tensor]) -> float:
    """Tokens per second after the first batch."""
    next(batches)
    begin = time.perf_counter()
    count = sum(batch.shape[0] * SEQ_LEN for batch in batches)
    return count / (time.perf_counter() - begin)


def start_up_elsewhere(samples: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        shards = {name: share * samples // 8 // SHARD_SAMPLES for name, share in SHARES.items()}
        for name, count in shards.items():
            write_index(Path(folder, name), count)
        command = [sys.executable, __file__, "--start-up", folder]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"samples": samples, "shards": sum(shards.values())} | found


def start_up(root: Path) -> dict[str, float]:
    """Seconds and MiB until the store is open and the first 512 samples are known."""
    before, begin = resident_mib(), time.perf_counter()
    store = ShardStore({name: root / name for name in SHARES}, world=World(), run_id="benchmark")
    opened = time.perf_counter()
    order = SampleOrder(mixture(), store.shard_samples, seed=1)
    order.samples(np.arange(10**7, 10**7 + 512))
    ordered = time.perf_counter()
    store.close()
    return {"store_seconds": opened - begin, "order_seconds": ordered - opened, "mib": peak_mib() - before}


def mixture() -> Mixture:
    return Mixture(list(SHARES), [(0, {"web": 1}), (1000, SHARES)])


def sizes(folder: Path) -> list[int]:
    return [shard["samples"] for shard in json.loads((folder / "index.json").read_text())["shards"]]


def write_index(folder: Path, shards: int) -> None:
    """The index of a corpus whose shards are not there."""
    folder.mkdir()
    common = {
        "column_encodings": ["ndarray:uint16"],
        "column_names": ["tokens"],
        "column_sizes": [None],
        "compression": None,
        "format": "mds",
        "hashes": ["sha256"],
        "samples": SHARD_SAMPLES,
        "size_limit": SHARD_BYTES,
        "version": 2,
        "zip_data": None,
    }
    entries = [
        common
        | {"raw_data": {"basename": f"shard.{shard:05}.mds", "bytes": SHARD_BYTES, "hashes": {"sha256": "0" * 64}}}
        for shard in range(shards)
    ]
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def table(result: dict) -> str:
    reading, lines = result["reading"], [f"{'reading':<22}{'M tokens/s':>12}{'of memmap':>12}"]
    for name, tokens_per_second in reading.items():
        lines.append(f"{name:<22}{tokens_per_second / 1e6:>12.1f}{tokens_per_second / reading['memmap']:>12.2f}")
    lines.append(f"\n{'beside a step':<22}{'step ms':>12}{'waiting ms':>12}")
    for name, each in result["waiting"].items():
        lines.append(f"{name:<22}{each['step']:>12.2f}{each['waiting']:>12.3f}")
    lines.append(f"\n{'start-up':<22}{'store s':>12}{'order s':>12}{'MiB':>12}")
    for each in result["start_up"]:
        name = f"{each['samples']:.0e} in {each['shards']} shards"
        lines.append(f"{name:<22}{each['store_seconds']:>12.2f}{each['order_seconds']:>12.3f}{each['mib']:>12.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
