import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random

import pyarrow.parquet
import pytest

from tinyllama.data.listing import find_files
from tinyllama.data.readers import Findings, read_documents
from tinyllama.data.sources import problems
from tinyllama.data.sources.chinese import chinese, number_in_words
from tinyllama.data.sources.code import notebooks, python_modules
from tinyllama.data.sources.english import english, paragraphs
from tinyllama.data.sources.mathematics import explanations, worked_problems
from tinyllama.data.sources.raw import CORPORA, train_on_corpora, write_raw_corpora
from tinyllama.data.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

MEGABYTES = {"slimpajama": 6, "starcoder": 6, "proof_pile_2": 3, "skypile": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The demo's raw corpora, once for all tests here."""
    folder = tmp_path_factory.mktemp("data")
    write_raw_corpora(folder)
    return folder


@pytest.fixture
def read(data, compose):
    """read("skypile") -> the texts that the shipped configuration finds and keeps, and what it skips."""
    corpora = compose("+scale=demo", f"paths.data={data}")[-1].corpora | _others(compose, data)

    def texts(name):
        findings = Findings()
        found = [
            document.text
            for file in find_files(corpora[name])
            for document in read_documents(Path(file.path), file, corpora[name], findings)
        ]
        return found, findings.skipped

    return texts


def _others(compose, data):
    return (
        compose("+scale=demo", "+variant=math_code", f"paths.data={data}")[-1].corpora
        | compose("+scale=demo", "+variant=chinese", f"paths.data={data}")[-1].corpora
    )


@pytest.mark.parametrize("name", MEGABYTES)
def test_each_corpus_is_large_enough_and_has_no_document_twice(read, name):
    texts, _ = read(name)
    assert sum(len(text.encode()) for text in texts) >= MEGABYTES[name] * 10**6
    assert len(set(texts)) == len(texts) > 300


def test_slimpajama_has_code_that_its_filter_drops(read):
    _, skipped = read("slimpajama")
    assert set(skipped) == {"meta.redpajama_set_name=RedPajamaGithub is dropped"}
    assert skipped.total() > 5


def test_starcoder_has_languages_that_the_configuration_leaves_out(data, read):
    languages = {path.name for path in (data / "raw" / "starcoder").iterdir()}
    assert {"python", "c", "javascript"} < languages
    other = pyarrow.parquet.read_table(data / "raw" / "starcoder" / "c").column("content").to_pylist()
    assert other
    assert not set(other) & set(read("starcoder")[0])


def test_english_is_prose_and_chinese_is_chinese(read):
    prose, text = "\n".join(read("slimpajama")[0]), "\n".join(read("skypile")[0])
    assert not re.search(r"^\s*>>>", prose, re.MULTILINE)
    assert prose.count(" the ") / len(prose.split()) > 0.03
    han = re.findall(r"[\u4e00-\u9fff]", text)
    assert len(han) > 0.7 * len(text)
    assert len(set(han)) > 1200


def test_chinese_does_not_repeat_itself(read):
    sentences = Counter(re.split(r"[。？！\n]", "\n".join(read("skypile")[0])))
    assert len(sentences) > 0.6 * sentences.total()
    assert len(sentences) > 30_000


def test_the_tokenizer_is_trained_on_every_corpus(data, compose, tmp_path):
    config = compose("+scale=demo", "+variant=chinese", f"paths.data={data}")[-1]
    tokenizer = replace(config.tokenizer, path=str(tmp_path / "demo.model"))
    train_on_corpora(tokenizer, list((config.corpora | _others(compose, data)).values()))
    model = Tokenizer.load(tokenizer)
    for text in ("the value of the argument is returned", "def __init__(self, name):\n    return self", "我们一起做饭"):
        assert len(model.encode(text)) < 0.75 * len(text)


def test_what_is_there_is_never_written_again(data):
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    told = []
    write_raw_corpora(data, lambda task, *_: told.append(task))
    assert told == [f"{name}: already there" for name in CORPORA]
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_sources_are_the_same_in_every_process():
    script = "from test_sources import beginnings; print(beginnings())"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", script], env=environment, cwd="/", check=True, capture_output=True)
    assert other.stdout.decode().strip() == beginnings()


def beginnings() -> str:
    """A digest of the first documents of every source."""
    sources = [
        (prose.text for prose in english()),
        (text for _, text in python_modules()),
        notebooks(),
        explanations(),
        worked_problems(0),
        chinese(0),
    ]
    return sha256(repr([list(islice(source, 60)) for source in sources]).encode()).hexdigest()


def test_paragraphs_are_sentences_and_nothing_else():
    prose = "This is a sentence that says in plain words what the function does when it is called."
    code = "Return x if y else z = foo(bar[1], baz.qux) + {'a': 1} * lambda q: q ** 2 and so on for _ in x."
    listing = "Args: name of the thing that is to be made by the function and used in all of the others."
    assert list(paragraphs(f"{prose}\n\n{code}\n\n{listing}\n\nToo short.\n\n{prose}")) == [prose, prose]


@pytest.mark.parametrize("family", problems.PROBLEMS)
def test_problems_differ_and_never_fail(family):
    drawn = {family(Random(seed)) for seed in range(200)}
    assert len(drawn) > 100


@pytest.mark.parametrize("seed", range(50))
def test_solutions_are_right(seed):
    question, solution = problems.modular_power(Random(seed))
    base, exponent, modulus = map(int, re.search(r"\$(\d+)\^\{(\d+)\}\$ on division by \$(\d+)\$", question).groups())
    assert int(re.search(r"\\equiv (\d+) \\pmod", solution)[1]) == pow(base, exponent, modulus)

    question, solution = problems.two_unknowns(Random(seed))
    (a, b, e), (c, d, f) = ((int(n) for n in row) for row in re.findall(r"(\d+)x \+ (\d+)y = (-?\d+)", question))
    x, y = (int(value) for value in re.findall(r" = (-?\d+)(?:\$ and|\$\.)", solution))
    assert (a * x + b * y, c * x + d * y) == (e, f)

    question, solution = problems.quadratic(Random(seed))
    b, c = map(int, re.search(r"x\^2 ([+-]\d+)x ([+-]\d+) = 0", question).groups())
    for root in re.findall(r"x_\d = (-?\d+)", solution):
        assert int(root) ** 2 + b * int(root) + c == 0


def test_chinese_numbers_are_written_as_people_write_them():
    words = [number_in_words(number) for number in (3, 10, 13, 20, 45)]
    assert words == ["三", "十", "十三", "二十", "四十五"]
    assert len({number_in_words(number) for number in range(100)}) == 100


def test_sheets_of_problems_are_endless_and_differ():
    sheets = list(islice(worked_problems(0), 300))
    assert len(set(sheets)) == 300
    assert set(sheets).isdisjoint(islice(worked_problems(1), 300))


def test_the_commands_build_and_prepare_a_corpus_and_say_so_in_one_json_document(data, run):
    settings = ("+scale=demo", f"paths.data={data}", "tracking=none")
    assert run("sample", *settings).code == 0
    first = run("prepare", *settings, "corpus=skypile", "format=json")
    document = json.loads(first.out)
    assert (first.code, document["corpus"]) == (0, "skypile")
    names = {"corpus", "documents", "skipped", "characters", "tokens", "samples", "shards", "bytes", "fingerprint"}
    assert names | {"seconds"} <= set(document)
    assert document["shards"] >= 8
    again = run("prepare", *settings, "corpus=skypile", "format=json")
    assert "skypile: already prepared" in again.err
    assert json.loads(again.out)["fingerprint"] == document["fingerprint"]
    table = run("prepare", *settings, "corpus=skypile").out
    assert "skypile" in table
    assert f"{document['documents']:,}" in table


def test_preparing_what_is_not_there_is_one_message(tmp_path, run):
    end = run("prepare", "+scale=demo", f"paths.data={tmp_path}")
    assert end.code == 2
    assert re.fullmatch(r"error: corpora.slimpajama.files=.* matches no file; .*tinyllama.sample.*\n", end.err)
    assert not list(tmp_path.iterdir())
