"""What the export of a checkpoint takes: memory, time beside plain copies of the bytes, the difference of logits.

    python benchmarks/export.py [--model tinyllama_1b] [--dtype bf16] [--folder WHERE] [--json]

The checkpoint has random weights. The command runs as a person runs it, in a process of its own, whose anonymous memory
is sampled: pages of mapped files, which the system drops when it wants to, are not in it, but in the peak that the
system itself keeps (maximum resident).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parents[1]))

from hydra import initialize_config_dir

from tests.laid import lay_run
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.app import compose_path, prepare_hydra
from tinyllama.config.location import conf_folder
from tinyllama.data.disk import sync
from tinyllama.data.sources.english import english
from tinyllama.data.tokenizer import train_tokenizer
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.flops import num_parameters

ROOT = Path(__file__).parents[1]
GIB = 2**30
SAMPLE_SECONDS = 0.02
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tinyllama_1b", help="of conf/model")
    parser.add_argument("--dtype", default="bf16", choices=BYTES)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result) if options.json else table(result))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    run, parameters = lay(options.model, folder)
    weights = next(run.checkpoints.glob("*/weights.safetensors"))
    command = [f"run={run.path}", f"out={folder / 'out'}", f"export.dtype={options.dtype}", "format=json"]
    exported = watched(command)
    files = sorted((folder / "out").glob("*.safetensors"))
    copied = {
        "copy of the exported": copy(files, folder / "copy"),
        "copy of the checkpoint": copy([weights], folder / "copy"),
    }
    limit = 1.3 * BYTES[options.dtype] * parameters / GIB + 1
    return {"parameters": parameters, "limit_gib": limit, **exported, **copied}


def lay(model: str, folder: Path) -> tuple[RunFolder, int]:
    """A run with one checkpoint of random weights."""
    tokenizer = folder / "tokenizer.model"
    train_tokenizer((prose.text for prose in islice(english(), 2000)), tokenizer, 4096)
    prepare_hydra()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        settings = [f"model={model}", "tokenizer=demo", f"tokenizer.path={tokenizer}", f"paths.runs={folder / 'runs'}"]
        path = compose_path(settings)
    corpora = {name: Corpus(name, "0" * 64, (10**6,)) for name in path[-1].corpora}
    inventory = Inventory(corpora, sha256(tokenizer.read_bytes()).hexdigest())
    return lay_run(path, inventory), num_parameters(path[-1].model)


def watched(arguments: list[str]) -> dict[str, float]:
    """Times of the command's parts, and its memory in GiB."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tinyllama.export", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    lines: dict[str, float] = {}
    reader = threading.Thread(target=tell_times, args=(process.stderr, begin, lines))
    reader.start()
    anonymous = 0
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"RssAnon:\s+(\d+) kB", status):
            anonymous = max(anonymous, int(found[1]) * 1024)
        time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - begin
    reader.join()
    if ended[1]:
        raise SystemExit("\n".join(lines))
    return {
        "anonymous_gib": anonymous / GIB,
        "maximum_resident_gib": ended[2].ru_maxrss * 1024 / GIB,
        "cpu_seconds": ended[2].ru_utime + ended[2].ru_stime,
        "seconds": seconds,
        **lines,
        "max_logit_difference": json.loads(process.stdout.read())["max_logit_difference"],
    }


def tell_times(stream: IO[str], begin: float, lines: dict[str, float]) -> None:
    """When each line came."""
    for line in stream:
        lines[f"until the end of {line.strip()}"] = time.monotonic() - begin


def copy(paths: list[Path], target: Path) -> float:
    """Seconds of a plain copy that is forced to the disk."""
    begin = time.monotonic()
    target.mkdir()
    for path in paths:
        shutil.copyfile(path, target / path.name)
        sync(target / path.name)
    seconds = time.monotonic() - begin
    shutil.rmtree(target)
    return seconds


def table(result: dict[str, float]) -> str:
    return "\n".join(f"{name:45} {value:,.3g}" for name, value in result.items())


if __name__ == "__main__":
    main()
