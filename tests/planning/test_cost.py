"""Hours and money, and what sharing saves."""

from dataclasses import replace

import pytest

from tinyllama.config.schema import SlurmConfig
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.cost import Throughput, assumed_throughput, expense, jobs_in_a_row, sum_up, throughput
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, grow

SIZES = {"slimpajama": (64,) * 40, "starcoder": (64,) * 9, "proof_pile_2": (64,) * 7, "skypile": (50,) * 21}
PREPARED = Inventory({name: Corpus(name, f"of {name}", sizes) for name, sizes in SIZES.items()}, "of the tokenizer")
RATE = Throughput(1000.0, "measured")


@pytest.fixture
def original(compose):
    return compose("stage=basic", "cluster=a100_40g_x4")[-1]


@pytest.fixture
def tree(compose):
    """tree(("+variant=chinese", "stage=continual"), ...) at demo scale."""

    def build(*jobs):
        paths = {job: compose("+scale=demo", *job) for job in jobs}
        return grow(Job(job, path, make_plan(path, PREPARED)) for job, path in paths.items())

    return build


def totals_of(nodes, rate=RATE, trained=None):
    return sum_up(nodes, {node.plan.digest: rate for node in nodes}, trained or {})


def test_the_original_cluster_takes_the_published_gpu_hours(original):
    rate = assumed_throughput(original)
    assert rate.tokens_per_second_per_gpu == pytest.approx(24_000, rel=0.01)
    assert rate.source == "an assumed MFU of 0.56 of 312 TFLOPS"
    spent = expense(300_000_000_000, rate, original.cluster)
    assert spent.gpu_hours == pytest.approx(3456, rel=0.02)
    assert spent.hours == pytest.approx(spent.gpu_hours / 64)
    assert spent.cost is None
    priced = replace(original.cluster, price_per_gpu_hour=2.0)
    assert expense(300_000_000_000, rate, priced).cost == pytest.approx(2 * spent.gpu_hours)


def test_what_finished_runs_measured_counts_more_than_what_is_assumed(original):
    assert throughput(original, [10.0, 30.0, 11.0]) == Throughput(
        11.0, "the median of 3 finished runs of this model on this cluster"
    )
    assert throughput(original, [10.0]).source == "1 finished run of this model on this cluster"
    assert throughput(original) == assumed_throughput(original)


@pytest.mark.parametrize("lacking", ["assumed_mfu", "gpu_peak_tflops"])
def test_what_is_not_known_is_none_and_says_why(original, tree, lacking):
    rate = assumed_throughput(replace(original, cluster=replace(original.cluster, **{lacking: None})))
    assert rate.tokens_per_second_per_gpu is None
    assert rate.source.startswith("unknown") and lacking in rate.source
    totals = totals_of(tree(("stage=basic",)), rate)
    assert totals.gpu_hours is totals.gpu_hours_saved is totals.gpu_hours_remaining is totals.cost is None
    assert totals.tokens == 94 * 4096


def test_a_basic_stage_that_three_variants_share_is_saved_twice(tree):
    jobs = [(f"+variant={name}", f"stage={stage}") for name in ("standard", "math_code", "chinese")
            for stage in ("basic", "cooldown")]  # fmt: skip
    nodes = tree(*jobs)
    totals = totals_of(nodes)
    assert totals.nodes == 7
    assert totals.tokens == sum(node.plan.tokens for node in nodes)
    assert totals.tokens_saved == 2 * nodes[0].plan.tokens
    assert totals.gpu_hours == pytest.approx(totals.tokens / 1000 / 3600)
    assert totals.gpu_hours_saved == pytest.approx(totals.tokens_saved / 1000 / 3600)


def test_a_single_path_saves_nothing(tree):
    assert totals_of(tree(("stage=basic",), ("stage=continual",))).tokens_saved == 0


def test_a_variant_that_means_the_same_as_another_is_saved_whole(tree):
    nodes = tree(("stage=continual",), ("+variant=standard", "stage=continual"))
    assert len(nodes) == 2
    assert totals_of(nodes).tokens_saved == sum(node.plan.tokens for node in nodes)


def test_a_fork_saves_what_it_shares_of_its_parent(tree):
    nodes = tree(("stage=continual",), ("stage=continual", "stage.fork_at_tokens=100_000"))
    assert len(nodes) == 3
    fork = next(node.plan for node in nodes if node.plan.parent and node.plan.start_tokens < node.plan.parent.tokens)
    assert totals_of(nodes).tokens_saved == fork.start_tokens


def test_what_is_trained_already_is_not_left_to_train(tree):
    nodes = tree(("stage=continual",))
    basic, continual = nodes
    trained = {basic.plan.digest: basic.plan.tokens, continual.plan.digest: 40_960}
    totals = totals_of(nodes, trained=trained)
    assert totals.gpu_hours_remaining == pytest.approx((continual.plan.tokens - 40_960) / 1000 / 3600)
    assert totals_of(nodes).gpu_hours_remaining == totals_of(nodes).gpu_hours


@pytest.mark.parametrize(
    "hours, jobs",
    [(0.0, 1), (0.1, 1), (1.75, 1), (1.76, 2), (2.0, 2), (3.5, 2), (17.6, 11), (None, None)],
)
def test_a_job_trains_until_its_notice_and_the_next_one_goes_on(hours, jobs):
    assert jobs_in_a_row(hours, SlurmConfig(time_hours=2, notice_seconds=900)) == jobs
