"""Build the demo's raw corpora, and its tokenizer, from the text of this Python installation."""

from pathlib import Path

from tinyllama.config.app import command
from tinyllama.config.schema import RunConfig

DEMO_TOKENIZER = "demo"
"""The one that is ours to train: conf/tokenizer/demo.yaml."""


@command
def main(config: RunConfig, overrides: list[str]) -> None:
    from tinyllama.data.reporter import shown
    from tinyllama.data.sources.raw import train_on_corpora, write_raw_corpora

    with shown() as progress:
        write_raw_corpora(Path(config.paths.data), progress)
        if config.tokenizer.name == DEMO_TOKENIZER:
            train_on_corpora(config.tokenizer, config.corpora.values(), progress)


if __name__ == "__main__":
    main()
