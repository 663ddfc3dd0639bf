"""Globs that can match the same file, held against what fnmatch says of real paths."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllama.planning.globs import can_meet


@pytest.mark.parametrize(
    "one, other",
    [
        ("raw/a/*.jsonl", "raw/a/*.jsonl"),
        ("raw/*/part.jsonl", "raw/a/*.jsonl"),
        ("raw/**/*.zst", "raw/train/chunk1/part.zst"),
        ("raw/**/*.zst", "raw/part.zst"),
        ("raw/./a/x", "raw/a/x"),
        ("part-[0-4]*", "part-[4-9]*"),
        ("part-?.zst", "part-[!a].zst"),
        ("a*b*c", "axbyc"),
        ("**", "raw/a/b"),
    ],
)
def test_globs_that_some_file_matches_both_of_meet(one, other):
    assert can_meet(one, other) and can_meet(other, one)


@pytest.mark.parametrize(
    "one, other",
    [
        ("raw/a/*.jsonl", "raw/b/*.jsonl"),
        ("raw/*.jsonl", "raw/a/part.jsonl"),
        ("raw/code/*.jsonl", "raw/code_python/*.jsonl"),
        ("part-[0-4]*", "part-[5-9]*"),
        ("*.jsonl", "*.parquet"),
        ("raw/**/x", "raw/ax"),
        ("a?", "a"),
    ],
)
def test_globs_that_no_file_matches_both_of_do_not_meet(one, other):
    assert not can_meet(one, other) and not can_meet(other, one)


GLOBS = st.text("ab*?", min_size=1, max_size=6)


@given(GLOBS, GLOBS, st.text("ab", min_size=1, max_size=8))
def test_a_name_that_matches_both_proves_that_they_meet(one, other, name):
    if fnmatchcase(name, one) and fnmatchcase(name, other):
        assert can_meet(one, other)


@given(GLOBS, st.text("ab", min_size=1, max_size=8))
def test_a_glob_meets_exactly_the_names_that_it_matches(glob, name):
    assert can_meet(glob, name) == fnmatchcase(name, glob)
