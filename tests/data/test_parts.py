from dataclasses import replace

import pytest

from tests.data.preparing import SEQ_LEN, contents, write
from tinyllama.config.schema import PreparationConfig, TokenizerEngine
from tinyllama.data import gate, pack, parts, recipe
from tinyllama.data.gate import by_kitoken
from tinyllama.data.parts import make_parts, read_tally
from tinyllama.data.recipe import lay_out
from tinyllama.data.tokenizer import train_tokenizer
from tinyllama.errors import ConfigError

KITOKEN = PreparationConfig(engine=TokenizerEngine.kitoken, processes=1)


@pytest.fixture
def make(tmp_path, corpus, tokenizer):
    """make("here", preparation) makes the parts of the test's corpus below its folder `here`: all of their files."""

    def run(name, preparation=None):
        work = lay_out(corpus(), tokenizer, SEQ_LEN, tmp_path / name)
        make_parts(work.recipe, work.parts, lambda done, total: None, preparation)
        assert {path.name for path in work.store.iterdir()} == {part.folder.name for part in work.parts}
        return contents(work.store)

    return run


@pytest.fixture
def by_sentencepiece(three_parts, make):
    return make("sentencepiece")


def test_kitoken_and_sentencepiece_come_to_the_same_files(by_sentencepiece, make, capfd, monkeypatch):
    used = []
    monkeypatch.setattr(pack, "by_kitoken", lambda exact: used.append(exact) or by_kitoken(exact))
    assert make("kitoken", KITOKEN) == by_sentencepiece
    assert len(used) == 3
    assert not capfd.readouterr().err


@pytest.mark.slow
def test_several_processes_encode_by_kitoken_too(by_sentencepiece, make, capfd):
    assert make("kitoken", replace(KITOKEN, processes=2)) == by_sentencepiece
    assert not capfd.readouterr().err


def test_kitoken_that_is_not_installed_is_done_without_and_that_is_said_once(
    by_sentencepiece, make, without_kitoken, capfd
):
    assert make("kitoken", KITOKEN) == by_sentencepiece
    assert capfd.readouterr().err.splitlines() == [
        "warning: corpora.tales is not encoded by preparation.engine=kitoken: kitoken is not installed "
        "(pip install kitoken); sentencepiece is used"
    ]


@pytest.fixture
def wrong(tmp_path, tokenizer, sentences, monkeypatch):
    """kitoken encodes by another model."""
    train_tokenizer(sentences(300, seed=9), tmp_path / "wrong.model", tokenizer.vocab_size)
    encode = gate._encoder((tmp_path / "wrong.model").read_bytes())
    monkeypatch.setattr(gate, "_encoder", lambda model: encode)


def test_kitoken_that_does_not_pass_the_gate_is_not_used(by_sentencepiece, make, wrong, monkeypatch, capfd):
    monkeypatch.setattr(pack, "by_kitoken", None)
    assert make("kitoken", KITOKEN) == by_sentencepiece
    [line] = capfd.readouterr().err.splitlines()
    assert "preparation.engine=kitoken: it encodes '" in line


def test_what_kitoken_gets_wrong_behind_the_gate_is_made_again(by_sentencepiece, make, wrong, monkeypatch, capfd):
    monkeypatch.setattr(parts, "objection", lambda *corpus: None)
    monkeypatch.setattr(pack, "CHECK_EVERY", 8)
    assert make("kitoken", KITOKEN) == by_sentencepiece
    [line] = capfd.readouterr().err.splitlines()
    assert ".jsonl:" in line and line.endswith(" differently; sentencepiece is used")


def test_one_damaged_file_does_not_keep_the_other_parts_from_being_made(tmp_path, three_parts, corpus, tokenizer):
    for number in (0, 2):
        with (tmp_path / "raw" / f"{number}.jsonl").open("a") as file:
            file.write("{\n")
    work = lay_out(corpus(), tokenizer, SEQ_LEN, tmp_path / "data")
    with pytest.raises(ConfigError) as error:
        make_parts(work.recipe, work.parts, lambda done, total: None)
    first, second = str(error.value).splitlines()
    assert "0.jsonl:71" in first
    assert "2.jsonl:71" in second
    assert [read_tally(part) is not None for part in work.parts] == [False, True, False]
    assert [path.name for path in work.store.iterdir()] == [work.parts[1].folder.name]


def test_what_is_wrong_with_many_files_is_told_of_the_first(tmp_path, corpus, tokenizer, monkeypatch):
    monkeypatch.setattr(recipe, "SMALLEST_PART_BYTES", 1)
    for number in range(12):
        write(tmp_path, ["sand"], f"{number:02d}.jsonl")
    work = lay_out(corpus(text_field="content"), tokenizer, SEQ_LEN, tmp_path / "data")
    with pytest.raises(ConfigError) as error:
        make_parts(work.recipe, work.parts, lambda done, total: None)
    lines = str(error.value).splitlines()
    assert [f"{number:02d}.jsonl:1 " in line for number, line in enumerate(lines[:-1])] == [True] * 10
    assert lines[-1] == "and 2 more"
