from pathlib import Path

import pytest

from tinyllama.errors import DamageError
from tinyllama.evaluation.record import Evaluation, differences, read_evaluation


def task(value: float, samples: int = 100) -> dict[str, object]:
    return {"metric": "acc", "value": value, "stderr": 1.0, "published": None, "samples": samples, "shots": 0}


def test_a_later_evaluation_replaces_what_it_has_in_common_with_an_earlier_and_keeps_the_rest(tmp_path: Path):
    path = tmp_path / "evaluations" / "1.json"
    Evaluation("a", tasks={"piqa": task(1), "boolq": task(2)}, perplexity={"x": {"loss": 1.0}}).merged_into(path)
    Evaluation("a", tasks={"piqa": task(3)}, perplexity={"y": {"loss": 2.0}}).merged_into(path)
    found = read_evaluation(path)
    assert found is not None
    assert {name: each["value"] for name, each in found.tasks.items()} == {"piqa": 3, "boolq": 2}
    assert found.perplexity == {"x": {"loss": 1.0}, "y": {"loss": 2.0}}


def test_values_are_compared_only_where_both_were_asked_the_same():
    mine = {"piqa": task(60), "boolq": task(50), "winogrande": task(10)}
    theirs = {"piqa": task(58.5), "boolq": task(40, samples=8)}
    assert differences(mine, theirs) == {"piqa": 1.5}


def test_what_nobody_has_measured_is_nothing_and_what_cannot_be_read_is_damaged(tmp_path: Path):
    assert read_evaluation(tmp_path / "none.json") is None
    for content in ("{", "[]", '{"tasks": {}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DamageError, match=r"bad\.json .* evaluate again"):
            read_evaluation(tmp_path / "bad.json")
