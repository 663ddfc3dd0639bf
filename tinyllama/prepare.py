"""Prepare raw corpora for training: `python -m tinyllama.prepare corpus=skypile`, or all that are configured.

action=check reads again all that was prepared and tells what is wrong; action=show sample=N prints a sample of a corpus
with its documents (split=validation: a held-out one); action=upload brings corpora to paths.remote.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from tinyllama.config.app import command
from tinyllama.config.corpora import chosen_corpora
from tinyllama.config.schema import CorpusConfig, Format, PrepareAction, RunConfig
from tinyllama.data.manifest import Manifest, read_manifest
from tinyllama.data.versions import version_folder
from tinyllama.errors import ConfigError, DamageError, unknown


@partial(command, launchers=True)
def main(config: RunConfig, overrides: list[str]) -> None:
    _ACTIONS[config.action](config, chosen_corpora(config, overrides))


def _prepare(config: RunConfig, corpora: Sequence[CorpusConfig]) -> None:
    from tinyllama.data.prepare import prepare_corpus
    from tinyllama.data.reporter import shown
    from tinyllama.reporting.corpora import keep, prepared_latest

    what = (config.tokenizer, config.packing.seq_len, config.paths.data)
    versions, summaries = [], []
    with shown() as progress:
        for corpus in corpora:
            began = perf_counter()
            manifest = prepare_corpus(corpus, *what, progress, config.preparation)
            versions.append(prepared_latest(config, corpus, manifest))
            summaries.append(manifest.summary(perf_counter() - began))
    if config.format is Format.json:
        _print_json(summaries)
    else:
        from tinyllama.reporting.inspection import print_prepared

        print_prepared(summaries)
    keep(config, versions)


def _check(config: RunConfig, corpora: Sequence[CorpusConfig]) -> None:
    from tinyllama.data.reporter import shown
    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.proof.corpora import examine_corpus
    from tinyllama.reporting.inspection import check_document, print_checks

    tokenizer = Tokenizer.load(config.tokenizer)
    versions = [(corpus, *_version(config, corpus.name)) for corpus in corpora]
    documents = []
    with shown() as progress:
        for corpus, folder, manifest in versions:
            tell = partial(progress, f"{corpus.name}: reading all of it")
            checks = examine_corpus(folder, manifest, corpus, tokenizer, tell)
            documents.append(check_document(corpus.name, manifest.fingerprint, checks))
    if config.format is Format.json:
        _print_json(documents)
    else:
        print_checks(documents)
    wrong = [f"{each['corpus']} ({check['name']})" for each in documents for check in each["checks"] if not check["ok"]]
    if wrong:
        sys.stdout.flush()
        raise DamageError(f"not as they were prepared: {', '.join(wrong)}; delete the version and prepare it again")


def _show(config: RunConfig, corpora: Sequence[CorpusConfig]) -> None:
    from tinyllama.data.passage import read_passage
    from tinyllama.data.tokenizer import Tokenizer
    from tinyllama.reporting.inspection import passage_document, print_passage

    if len(corpora) != 1:
        names = ", ".join(corpus.name for corpus in corpora)
        raise ConfigError(f"action=show shows a sample of one corpus, but {names} are chosen; name it: corpus=NAME")
    folder, manifest = _version(config, corpora[0].name)
    if config.split not in manifest.splits:
        raise unknown("split", config.split, manifest.splits)
    if config.sample is None:
        count = manifest.splits[config.split].samples
        raise ConfigError(f"action=show wants to know which sample: sample=N, counted from 0, below {count}")
    passage = read_passage(folder, manifest, config.split, config.sample, Tokenizer.load(config.tokenizer))
    if config.format is Format.json:
        print(json.dumps(passage_document(passage)))
    else:
        print_passage(passage)


def _upload(config: RunConfig, corpora: Sequence[CorpusConfig]) -> None:
    from tinyllama.data.reporter import shown
    from tinyllama.data.upload import upload_corpus

    if config.paths.remote is None:
        raise ConfigError("action=upload needs to know whither: paths.remote=s3://BUCKET/FOLDER, or another address")
    versions = [_version(config, corpus.name) for corpus in corpora]
    with shown() as progress:
        for folder, _ in versions:
            upload_corpus(folder, config.paths.remote, config.preparation.compression, progress)


_ACTIONS: dict[PrepareAction, Callable[[RunConfig, Sequence[CorpusConfig]], None]] = {
    PrepareAction.prepare: _prepare,
    PrepareAction.check: _check,
    PrepareAction.show: _show,
    PrepareAction.upload: _upload,
}


def _version(config: RunConfig, corpus: str) -> tuple[Path, Manifest]:
    """The version that the settings name.

    Raises:
        ConfigError: the corpus is not prepared.
    """
    folder = version_folder(config, corpus)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"corpora.{corpus} is not prepared: there is no {folder}; prepare it: "
            f"python -m tinyllama.prepare corpus={corpus}"
        )
    return folder, manifest


def _print_json(documents: Sequence[dict[str, Any]]) -> None:
    print(json.dumps(documents[0] if len(documents) == 1 else documents))


if __name__ == "__main__":
    main()
