"""Places, colours and letters that all pictures share."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from tinyllama.reporting.figures.canvas import LINE, Place, apart, corpus_styles, elided, rows_of, text_width

NAMES = ("slimpajama", "starcoder", "proof_pile_2", "skypile")
LABELS = st.builds(Place, st.sampled_from(["a", "label", "a longer label"]), st.floats(-50, 350), st.floats(0, 100))


@given(st.lists(LABELS, max_size=8))
def test_labels_are_raised_until_none_overlaps_and_stay_on_the_sheet(wishes):
    placed = apart(wishes, 300)
    for wish, place in zip(wishes, placed, strict=True):
        assert place.text == wish.text and place.bottom >= wish.bottom
        assert place.left >= 0 and place.left + text_width(place.text) <= 300
    for one, other in combinations(placed, 2):
        beside = one.left + text_width(one.text) < other.left or other.left + text_width(other.text) < one.left
        assert beside or abs(one.bottom - other.bottom) >= LINE - 0.01


def test_a_label_alone_stands_where_it_wished():
    assert apart([Place("a", 10, 20)], 300) == [Place("a", 10, 20)]


def test_a_text_is_shortened_in_its_middle_until_it_fits():
    assert elided("short", 100) == "short"
    shorter = elided("a-variant-with-a-very-long-name", 80)
    assert text_width(shorter) <= 80
    assert shorter.startswith("a-var") and "…" in shorter and shorter.endswith("name")


def test_things_go_on_as_many_rows_as_they_need():
    assert rows_of([50, 40, 30, 200, 10], 100) == [[0, 1], [2], [3], [4]]


def test_the_shipped_corpora_look_alike_in_all_pictures():
    whole = corpus_styles(NAMES)
    for count in range(1, 5):
        for some in combinations(NAMES, count):
            assert corpus_styles(some) == {name: whole[name] for name in some}


def test_no_two_corpora_look_alike():
    styles = corpus_styles(f"corpus {number}" for number in range(30))
    looks = {(style["facecolor"], style["hatch"]) for style in styles.values()}
    assert len(looks) == 30
