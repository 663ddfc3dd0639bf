"""Pictures of corpora can be read, however many names there are and however long."""

import pytest

from tests.reporting.figures.conftest import assert_readable, drawn_texts
from tinyllama.data.documents import Lengths
from tinyllama.reporting.figures.corpora import Amount, amounts_figure, lengths_figure

AMOUNTS = {
    "one": [Amount("tales", 3, 120)],
    "very unequal": [Amount("small", 1, 1), Amount("large", 10**9, 627 * 10**9), Amount("nothing", 0, 0)],
    "long names with signs": [Amount(f"set-{number} $x$ {'and so on ' * 9}", 7, 10**number) for number in range(6)],
}


@pytest.mark.parametrize("case", AMOUNTS)
def test_every_amount_stands_beside_its_name(case):
    figure = amounts_figure("tales@0123456789ab: tokens of its source sets", AMOUNTS[case], "tales")
    assert_readable(figure)
    assert len(drawn_texts(figure)) == 1 + 2 * len(AMOUNTS[case])


def test_the_smallest_of_very_many_are_one_row_together():
    figure = amounts_figure("many", [Amount(f"set {number}", 2, 10 + number) for number in range(100)])
    assert_readable(figure)
    texts = [text.get_text() for text in drawn_texts(figure)]
    assert texts[1:3] == ["set 99", "109 tokens, 1.83 %, 2 documents"]
    assert "60 others" in texts and "2.37K tokens, 39.8 %, 120 documents" in texts


@pytest.mark.parametrize("octaves", [1, 8, 25])
def test_lengths_are_drawn_as_shares_of_documents_and_of_tokens(octaves):
    documents = tuple(octave + 1 for octave in range(octaves))
    tokens = tuple(count * 2**octave for octave, count in enumerate(documents))
    figure = lengths_figure("tales: length of documents", "tales", Lengths(documents, tokens), 2048)
    assert_readable(figure)
    for axes, amounts in zip(figure.axes, (documents, tokens), strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        assert heights == pytest.approx([amount / sum(amounts) for amount in amounts])
        assert bool(axes.lines) == (2**octaves > 2048), "the length of a sample is marked where it lies on the sheet"
