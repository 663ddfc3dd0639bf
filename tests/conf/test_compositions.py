"""Every combination of the groups' options composes, types, passes the checks and plans, the real scale included."""

from dataclasses import replace
from itertools import product

import pytest

from tinyllama.config.checks import check_path
from tinyllama.config.location import conf_folder
from tinyllama.data.inventory import take_inventory
from tinyllama.planning.flops import num_parameters
from tinyllama.planning.plan import make_plan

VARIANTS = ("standard", "math_code", "chinese")
STAGES = ("basic", "continual", "cooldown")
CLUSTERS = ("local", "a100_40g_x4", "h100_x8", "h200_x8", "slurm")
SCALES = ("", "demo")
COMBINATIONS = [
    pytest.param(*each, marks=pytest.mark.slow if each[2] != "local" and each[3] else [], id="-".join(each).strip("-"))
    for each in product(VARIANTS, STAGES, CLUSTERS, SCALES)
]
"""All of them; `make check` leaves the demo on large clusters out."""


def options(group: str) -> set[str]:
    return {path.stem for path in (conf_folder() / group).glob("*.yaml")}


@pytest.fixture
def empty(tmp_path):
    """Plans a path as if nothing had been prepared."""

    def plan_of(path):
        check_path(path)
        path = (*path[:-1], replace(path[-1], paths=replace(path[-1].paths, data=str(tmp_path))))
        return make_plan(path, take_inventory(path))

    return plan_of


def test_the_combinations_below_are_all_there_are():
    assert options("variant") == set(VARIANTS)
    assert options("stage") == set(STAGES)
    assert options("cluster") == set(CLUSTERS)
    assert options("scale") == {"demo"}


@pytest.mark.parametrize("variant, stage, cluster, scale", COMBINATIONS)
def test_every_variant_and_stage_plans_on_every_cluster_at_every_scale(compose, empty, variant, stage, cluster, scale):
    scaled = [f"+scale={scale}"] if scale else []
    # The demo's batches are for one machine: no cluster of 32 GPUs could share them.
    on = [f"cluster={cluster}", *(["cluster.nodes=1", "cluster.micro_batch=1"] if scale else [])]
    path = compose(*scaled, f"+variant={variant}", f"stage={stage}", *on)
    plan = empty(path)
    assert [config.stage.name for config in path] == list(STAGES[: STAGES.index(stage) + 1])
    assert set(plan.corpora) == {
        name for config in path[-1:] for name in (config.root_mix if stage == "basic" else config.data_mix).weights
    }
    assert plan.provisional
    assert plan.end_tokens == pytest.approx(sum(config.stage.tokens for config in path), rel=0.02)


@pytest.mark.parametrize("model, tokenizer", [("tinyllama_1b", "llama2"), ("120m", "llama2"), ("nano", "demo")])
@pytest.mark.parametrize("tracking", ["mlflow", "none"])
def test_every_model_plans_with_its_tokenizer_and_every_tracker(compose, empty, model, tokenizer, tracking):
    assert {model} <= options("model") and {tokenizer} <= options("tokenizer") and {tracking} <= options("tracking")
    empty(compose(f"model={model}", f"tokenizer={tokenizer}", f"tracking={tracking}"))


@pytest.mark.parametrize("group", ["model", "tokenizer", "data_mix", "corpus", "schedule", "optimizer", "tracking"])
def test_each_option_of_the_other_groups_is_called_as_its_file(compose, group):
    """A name that differs from its file would lead people, and messages that quote it, astray."""
    for option in options(group):
        config = compose(f"{group}={option}")[-1]
        named = config.corpora[option] if group == "corpus" else getattr(config, group)
        if hasattr(named, "name") and group != "schedule":
            assert named.name == option


def test_the_real_scale_is_the_original(compose, empty):
    path = compose("+variant=chinese", "stage=cooldown")
    basic, continual, cooldown = empty(path).path
    assert num_parameters(path[-1].model) == 1_100_048_384
    assert basic.batch_tokens == continual.batch_tokens == 896 * 2048
    assert cooldown.batch_tokens == 3584 * 2048
    assert (basic.steps, continual.steps, cooldown.steps) == (817_435, 190_735, 20_436)
    assert [f"{plan.schedule(plan.end_tokens):.2e}" for plan in (basic, continual, cooldown)] == [
        "9.29e-05",
        "4.50e-05",
        "4.00e-05",
    ]
    assert basic.schedule(3_670_016_000) == 4e-4
    assert continual.start_weights == {"slimpajama": 1.0}
    assert continual.end_weights == cooldown.start_weights == {"slimpajama": 0.5, "skypile": 0.5}
    assert basic.order.draws_before(basic.samples)["slimpajama"] / basic.order.epoch_samples("slimpajama") == (
        pytest.approx(2.39, abs=0.01)
    )
