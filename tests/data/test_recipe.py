"""How a corpus is cut before anything is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.config.schema import OnBadRow, RawFormat
from tinyllama.data.listing import RawFile
from tinyllama.data.recipe import cut, lay_out, part_bytes, shard_samples

MIB, GIB = 1 << 20, 1 << 30


def listing(count, size, name="part"):
    """Files of about this size."""
    return [
        RawFile(f"/raw/{name}-{number:05d}.jsonl.zst", size + 1000 * (number * 7919 % 97), 0) for number in range(count)
    ]


@given(st.lists(st.integers(0, MIB), max_size=60))
def test_the_parts_are_all_files_in_their_order(sizes):
    files = [RawFile(f"/raw/{number}", size, 0) for number, size in enumerate(sizes)]
    parts = list(cut(files))
    assert [file for part in parts for file in part] == files
    assert all(parts)


@pytest.mark.parametrize("count, size", [(59_000, 15 * MIB), (200, 4 * GIB), (100_000, 100), (3, 10 * MIB), (1, 0)])
def test_there_are_no_more_than_a_few_thousand_parts_of_similar_size_however_many_files_there_are(count, size):
    files = listing(count, size)
    total = sum(file.bytes for file in files)
    parts = [sum(file.bytes for file in part) for part in cut(files)]
    assert len(parts) <= 4096
    assert max(parts) < part_bytes(total) + max(file.bytes for file in files)
    assert all(each >= part_bytes(total) / 4 for each in parts[:-1])


def test_a_corpus_as_large_as_slimpajama_keeps_a_hundred_cores_busy():
    assert 1000 < len(list(cut(listing(59_000, 15 * MIB)))) < 4000


@pytest.mark.parametrize("place", [0, 5000, 9000, 10_000])
@pytest.mark.parametrize("added", [1, 40])
def test_files_that_are_added_anywhere_change_few_parts(place, added):
    files = listing(10_000, 10 * MIB)
    before = set(cut(files))
    files[place:place] = listing(added, 10 * MIB, "new")
    after = list(cut(files))
    assert len([part for part in after if part not in before]) <= 12 + added // 10
    assert len(after) > 500


def test_a_file_that_is_removed_or_written_anew_changes_few_parts():
    files = listing(10_000, 10 * MIB)
    before = set(cut(files))
    without, changed = files[:5000] + files[5001:], [*files]
    changed[5000] = RawFile(files[5000].path, files[5000].bytes * 2, 1)
    for others in (without, changed):
        assert len([part for part in cut(others) if part not in before]) <= 12


def test_the_cut_is_the_same_wherever_the_corpus_lies_and_whenever_it_was_written():
    files = listing(500, MIB)
    moved = [RawFile(file.path.replace("/raw/", "s3://bucket/raw/"), file.bytes, 5, tag="x") for file in files]
    assert list(map(len, cut(moved))) == list(map(len, cut(files)))


@given(st.integers(0, 1 << 46), st.integers(0, 1 << 46), st.integers(100, 1 << 18))
def test_the_sizes_of_parts_and_shards_go_up_together_in_steps(less, more, sample_bytes):
    less, more = sorted((less, more))
    assert part_bytes(less) <= part_bytes(more)
    assert shard_samples(less, sample_bytes) <= shard_samples(more, sample_bytes)
    if part_bytes(less) == part_bytes(more):
        assert shard_samples(less, sample_bytes) == shard_samples(more, sample_bytes)


@given(st.integers(0, 1 << 46), st.integers(100, 1 << 18))
def test_a_shard_holds_a_power_of_two_of_samples_and_about_8_mib_at_most(total, sample_bytes):
    samples = shard_samples(total, sample_bytes)
    assert samples.bit_count() == 1
    assert samples == 16 or samples * sample_bytes <= 12 * MIB
    assert samples * sample_bytes >= 45_000 or sample_bytes < 100


@pytest.mark.parametrize("settings", [
    {"text_field": "content"}, {"source_field": "meta"}, {"keep": {"lang": ["en"]}}, {"drop": {"lang": ["en"]}},
    {"validation_fraction": 0.2}, {"on_bad_row": OnBadRow.skip}, {"format": RawFormat.jsonl},
])  # fmt: skip
def test_a_setting_that_changes_what_a_part_holds_changes_its_name(tmp_path, corpus, tokenizer, settings):
    (tmp_path / "raw" / "a.jsonl").write_text('{"text": "river"}\n')
    names = [lay_out(corpus(**each), tokenizer, 32, tmp_path).parts[0].folder.name for each in ({}, settings)]
    assert names[0] != names[1]


def test_a_glob_that_renames_the_source_sets_of_other_files_renames_their_parts(tmp_path, corpus, tokenizer):
    for name in ("one", "two", "three"):
        (tmp_path / "raw" / name).mkdir()
        (tmp_path / "raw" / name / "a.jsonl").write_text('{"text": "river"}\n')

    def first(*names):
        globs = [f"{tmp_path}/raw/{name}/*.jsonl" for name in names]
        return lay_out(corpus(files=globs), tokenizer, 32, tmp_path).parts[0].folder.name

    # They are as small as to make one part; what counts is whether the name of the first set enters.
    assert first("one") != first("one", "two")
