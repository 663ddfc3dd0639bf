import random
from collections.abc import Sequence

from tinyllama.evaluation.held_out import CONTEXT, ENDING, ENDINGS, make_questions


def texts(count: int, words: int = 80) -> list[str]:
    """Documents in which each word is of one document alone."""
    dice = random.Random(1)
    return [" ".join(f"{chr(0x4E00 + number)}{dice.randrange(10**6)}" for _ in range(words)) for number in range(count)]


def owner(text: str, documents: Sequence[str]) -> int:
    (number,) = [number for number, document in enumerate(documents) if text in document]
    return number


def test_the_right_ending_goes_on_where_the_context_ends_and_the_others_are_of_other_documents():
    documents = texts(9)
    questions = make_questions(documents, "a seed")
    assert len({owner(question["context"], documents) for question in questions}) == 9
    for question in questions:
        endings, label = question["endings"], question["label"]
        number = owner(question["context"] + endings[label], documents)
        assert len(set(endings)) == ENDINGS and {len(ending) for ending in endings} == {ENDING}
        assert all(owner(each, documents) != number for place, each in enumerate(endings) if place != label)


def test_the_place_of_the_right_ending_tells_nothing_and_a_seed_always_gives_the_same():
    documents = texts(60)
    questions = make_questions(documents, "a seed")
    assert questions == make_questions(documents, "a seed") != make_questions(documents, "another")
    labels = [question["label"] for question in questions]
    assert len(labels) == 200 and all(30 < labels.count(label) < 70 for label in range(ENDINGS))


def test_an_ending_begins_at_a_space_where_there_is_one_near_and_else_at_the_character():
    spaced = make_questions(texts(9), "seed")
    assert all(question["endings"][question["label"]].startswith(" ") for question in spaced)
    dense = make_questions([text.replace(" ", "") for text in texts(9)], "seed")
    assert {len(question["context"]) for question in dense} == {CONTEXT}


def test_too_few_or_too_short_documents_give_no_questions():
    assert make_questions(texts(ENDINGS - 1, words=16), "seed") == []
    assert make_questions(["short"] * 9, "seed") == []
