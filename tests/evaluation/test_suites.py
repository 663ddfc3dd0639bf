import pytest

from tinyllama.evaluation.published import PUBLISHED, published_of_run
from tinyllama.evaluation.suites import SUITES, Benchmark, benchmarks, suite_averages


def test_names_become_the_tasks_of_their_suites_each_once_in_the_order_asked_for():
    asked = benchmarks(["piqa", "commonsense", "held_out", "perplexity", "lambada", "piqa"], ["held_out_skypile"])
    commonsense = [benchmark.task for benchmark in SUITES["commonsense"] if benchmark.task != "piqa"]
    assert list(asked) == ["piqa", *commonsense, "held_out_skypile", "lambada"]


def test_a_task_of_a_suite_is_asked_as_the_suite_asks_it_though_it_is_named_alone():
    assert benchmarks(["mmlu", "lambada"], []) == {
        "mmlu": Benchmark("mmlu", "acc", 5),
        "lambada": Benchmark("lambada", None, None),
    }


def test_a_suite_has_an_average_only_when_all_of_its_tasks_have_a_value():
    values = {benchmark.task: float(place) for place, benchmark in enumerate(SUITES["chinese"])}
    assert suite_averages(values | {"held_out_a": 10.0, "held_out_b": 20.0}) == {"chinese": 1.5, "held_out": 15.0}
    del values["xnli_zh"]
    assert suite_averages(values) == {}


@pytest.mark.parametrize(
    "variant, averages",
    [("standard", (53.63, 19.44, 47.46)), ("math_code", (53.75, 21.18, 52.64)), ("chinese", (53.41, 19.26, 58.37))],
)
def test_the_published_figures_have_the_published_averages(variant: str, averages: tuple[float, ...]):
    found = suite_averages(PUBLISHED[variant])
    assert [found[suite] for suite in SUITES] == pytest.approx(averages, abs=0.011)


def test_published_figures_are_for_models_of_the_original_s_size_at_the_end_of_its_life(compose):
    end = compose("+variant=chinese", "stage=cooldown")[-1]
    demo = compose("+scale=demo", "+variant=chinese", "stage=cooldown")[-1]
    assert published_of_run("chinese", end.model, 1_999_999_467_520) is PUBLISHED["chinese"]
    assert published_of_run("chinese", end.model, 1_850_000_000_000) == {}
    assert published_of_run("chinese", demo.model, 1_999_999_467_520) == {}
    assert published_of_run("a variant of my own", end.model, 2_000_000_000_000) == {}
