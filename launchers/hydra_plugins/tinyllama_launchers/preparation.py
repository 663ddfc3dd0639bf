"""What a job that prepares a corpus runs: `CONFIG CORPUS SHARE SHARES` makes a share of its parts, `CONFIG CORPUS` all.

Light, as Hydra imports it whenever it looks for launchers.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path


def main() -> None:
    from tinyllama.config.load import from_yaml
    from tinyllama.data.prepare import prepare_corpus, prepare_share
    from tinyllama.data.recipe import lay_out
    from tinyllama.errors import TinyllamaError
    from tinyllama.reporting.corpora import keep, prepared_latest

    file, name, *share = sys.argv[1:]
    try:
        config = from_yaml(Path(file))
        what = (config.corpora[name], config.tokenizer, config.packing.seq_len, config.paths.data)
        how = replace(config.preparation, processes=config.preparation.processes or _processes())
        if share:
            prepare_share(lay_out(*what), int(share[0]), int(share[1]), _tell, how)
        else:
            manifest = prepare_corpus(*what, _tell, how)
            _tell(f"{name}: {manifest.tokens:,} tokens, fingerprint {manifest.fingerprint}", 1, 1)
            keep(config, [prepared_latest(config, config.corpora[name], manifest)])
    except TinyllamaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _processes() -> int:
    """As many as the cores that the job was given; not every cluster binds it to them."""
    cores = len(os.sched_getaffinity(0))
    return min(cores, int(os.environ.get("SLURM_CPUS_ON_NODE", cores)))


def _tell(task: str, done: int, total: int) -> None:
    """A line for each step: nobody sees a bar in a log."""
    print(f"{task}: {done} of {total}" if total > 1 else task, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
