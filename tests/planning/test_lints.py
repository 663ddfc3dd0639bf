"""Each lint sees the fault that it is there for, once, and the families of conf/ are without fault."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tinyllama.config.checks import check_path
from tinyllama.config.stages import continued_stages
from tinyllama.data.inventory import take_inventory
from tinyllama.errors import ConfigError
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.lints import LINTS, Lint, lint, require_no_errors
from tinyllama.planning.memory import estimate_memory
from tinyllama.planning.plan import make_plan
from tinyllama.planning.tree import Job, Node, grow
from tinyllama.planning.views import View

DOCS = Path(__file__).parents[2] / "docs"
VARIANTS, STAGES = ("standard", "math_code", "chinese"), ("basic", "continual", "cooldown")
SCALES = ([], ["+scale=demo"])
SWEEP = {"variants": VARIANTS, "stages": STAGES}

Settings = Mapping[str, object]


@pytest.fixture(scope="session")
def nothing(tmp_path_factory) -> str:
    """A folder of no prepared corpora; the same for all tests, so that what was composed is found again."""
    return f"paths.data={tmp_path_factory.mktemp('data')}"


@pytest.fixture
def family(compose, nothing) -> Callable[..., tuple[Node, ...]]:
    """family("stage=cooldown") -> the nodes of a stage; with `variants` and `stages` those of a sweep.

    `settings` hold for every stage of a path, those of `own` for the stage that they are given for.
    """

    def grown(
        *typed: str, variants: Sequence[str] = (), stages: Sequence[str] = (),
        settings: Settings = MappingProxyType({}), own: Mapping[str, Settings] = MappingProxyType({}),
    ):  # fmt: skip
        choices = [[f"+variant={each}" for each in variants], [f"stage={each}" for each in stages]]
        jobs = []
        for choice in product(*filter(None, choices)):
            overrides = [*typed, *choice, nothing]
            path = tuple(
                with_settings(config, {**settings, **own.get(config.stage.name, {})}) for config in compose(*overrides)
            )
            check_path(path)
            plan = make_plan(path, take_inventory(path))
            jobs.append(Job(tuple(overrides), path, plan, plan.stage in continued_stages()))
        return grow(jobs)

    return grown


def with_settings(config: Any, settings: Settings) -> Any:
    """A copy of a config, or of a part of it, with other values under dotted names."""
    for setting, value in settings.items():
        name, _, below = setting.partition(".")
        inner = config.get(name) if isinstance(config, dict) else getattr(config, name)
        value = with_settings(inner, {below: value}) if below else value
        config = {**config, name: value} if isinstance(config, dict) else replace(config, **{name: value})
    return config


def only(found: Sequence[Lint], name: str) -> list[str]:
    """Messages of one lint."""
    return [each.message for each in found if each.name == name]


def loud(found: Sequence[Lint]) -> list[str]:
    """Names of what is more than a note."""
    return [each.name for each in found if each.level != "note"]


# ---------------------------------------------------------------- the families of conf/


@pytest.mark.parametrize("scale", SCALES)
def test_the_family_has_no_fault(family, scale):
    nodes = family(*scale, **SWEEP)
    assert len(nodes) == 7
    assert loud(lint(nodes)) == []


@pytest.mark.parametrize("scale, variant, stage", product(SCALES, VARIANTS, STAGES))
def test_a_single_stage_of_a_single_variant_has_no_fault(family, scale, variant, stage):
    assert loud(lint(family(*scale, variants=[variant], stages=[stage]))) == []


@pytest.mark.parametrize("cluster", ["a100_40g_x4", "h100_x8", "h200_x8"])
def test_the_family_has_no_fault_on_any_cluster(family, cluster):
    assert loud(lint(family(f"cluster={cluster}", "+variant=chinese", "stage=cooldown"))) == []


# ---------------------------------------------------------------- learning rate


def test_a_floor_at_the_peak_is_an_error_told_once(family):
    found = lint(family(**SWEEP, settings={"schedule.min_learning_rate": 4e-4}))
    (message,) = only(found, "floor_above_peak")
    assert message.startswith("schedule.min_learning_rate=0.0004 must lie below the peak")
    assert "optimizer.learning_rate=0.0004" in message and message.endswith("4e-05")


def test_a_horizon_within_the_path_is_an_error_that_names_the_longest_path(family):
    (message,) = only(lint(family(**SWEEP, settings={"schedule.horizon_tokens": 14 * 10**11})), "horizon_short")
    assert message.startswith("schedule.horizon_tokens=1400000000000 is shorter than the path")
    assert "basic 1.5T -> continual 350B -> cooldown 150B" in message
    assert "set schedule.horizon_tokens=2000000000000" in message


def test_a_horizon_of_a_stages_own_before_its_end_is_an_error(family):
    nodes = family("stage=cooldown", own={"basic": {"schedule.horizon_tokens": 10**12}})
    (message,) = only(lint(nodes), "horizon_short")
    assert "(basic 1.5T)" in message and "set schedule.horizon_tokens=1500000000000" in message


def test_a_horizon_beyond_the_end_of_the_path_is_a_warning(family):
    nodes = family(**SWEEP, settings={"schedule.horizon_tokens": 3 * 10**12})
    (message,) = only(lint(nodes), "horizon_long")
    assert "basic 1.5T -> continual 350B -> cooldown 150B" in message and message.endswith("=2000000000000")
    assert f"a learning rate of {nodes[0].plan.schedule(2 * 10**12):.3g} " in message
    assert loud(lint(nodes)) == ["horizon_long"]


def test_a_path_may_end_early_only_where_a_stage_of_conf_goes_on(family):
    assert loud(lint(family("stage=continual"))) == []
    anneal = family("stage=cooldown", "stage.name=anneal", "stage.parent=basic")
    (message,) = only(lint(anneal), "horizon_long")
    assert "basic 1.5T -> anneal 150B" in message and message.endswith("set schedule.horizon_tokens=1650000000000")


def test_a_fork_counts_from_where_it_leaves_its_parent(family):
    fork = {"stage.name": "short", "stage.fork_at_tokens": 10**12, "stage.tokens": 5 * 10**11}
    (message,) = only(lint(family("stage=continual", own={"continual": fork})), "horizon_long")
    assert message.endswith("set schedule.horizon_tokens=1500000000000")


def test_a_schedule_that_does_not_fall_ends_above_its_floor(family):
    found = lint(family(**SWEEP, settings={"schedule.name": "constant"}))
    (message,) = only(found, "ends_above_floor")
    assert "schedule.name=constant ends stage cooldown with a learning rate of 0.0004" in message
    assert "schedule.min_learning_rate=4e-05" in message
    assert loud(found) == ["ends_above_floor"]
    assert loud(lint(family("stage=basic", settings={"schedule.name": "constant"}))) == []


def test_a_warm_up_that_a_child_starts_within_is_an_error(family):
    own = {"continual": {"schedule.warmup_tokens": 1_503_000_000_000}}
    found = lint(family(variants=VARIANTS, stages=["continual"], own=own))
    (message,) = only(found, "warmup_repeated")
    assert message.startswith("schedule.warmup_tokens=1503000000000") and "3670016000 for both" in message
    assert loud(found) == ["warmup_repeated"], "the jump that comes with it is the same fault"


def test_a_warm_up_that_goes_on_in_a_child_is_no_fault(family):
    assert loud(lint(family("stage=continual", settings={"schedule.warmup_tokens": 16 * 10**11}))) == []


@pytest.mark.parametrize(
    "own, told",
    [
        ({"optimizer.learning_rate": 3e-4}, "optimizer.learning_rate=0.0003 (0.0004 in basic)"),
        ({"schedule.horizon_tokens": 1_850_000_000_000}, "schedule.horizon_tokens=1850000000000 (2000000000000 in"),
        ({"schedule.name": "constant"}, "schedule.name=constant (cosine in basic)"),
    ],
)
def test_a_learning_rate_that_jumps_at_a_border_is_an_error(family, own, told):
    found = lint(family(variants=VARIANTS, stages=["continual"], own={"continual": own}))
    (message,) = only(found, "learning_rate_jump")
    assert message.startswith(told)
    assert "has 9.29e-05 where they meet, at 1499999764480 tokens" in message


def test_a_schedule_of_a_childs_own_that_meets_its_parents_is_no_fault(family):
    """Both are at the peak where the child starts: the parent is constant, the child's decay begins there."""
    border = family("stage=continual")[0].plan.end_tokens
    own = {"basic": {"schedule.name": "constant"}, "continual": {"schedule.warmup_tokens": border}}
    assert loud(lint(family("stage=continual", own=own))) == []


def test_other_settings_of_the_optimizer_are_no_jump_of_the_learning_rate(family):
    assert loud(lint(family("stage=continual", own={"continual": {"optimizer.weight_decay": 0.01}}))) == []


# ---------------------------------------------------------------- mixture and corpora


def test_a_mixture_that_jumps_is_a_warning(family):
    found = lint(family(variants=VARIANTS, stages=["continual"], settings={"stage.ramp_tokens": 0}))
    of_math_code, of_chinese = only(found, "mixture_jump")
    assert "slimpajama from 1 to 0.5, skypile from 0 to 0.5" in of_chinese
    assert of_chinese.endswith("stage.ramp_tokens=7000000000")
    assert loud(found) == ["mixture_jump", "mixture_jump"], "standard has the mixture of its parent"


def test_a_fork_within_its_parents_ramp_jumps_unless_it_has_a_ramp_of_its_own(family):
    fork = {"stage.fork_at_tokens": 1_503_000_000_000}
    (message,) = only(lint(family("+variant=chinese", "stage=cooldown", own={"cooldown": fork})), "mixture_jump")
    assert "slimpajama from 0.75 to 0.5" in message
    own = {"cooldown": {**fork, "stage.ramp_tokens": 3 * 10**9}}
    assert only(lint(family("+variant=chinese", "stage=cooldown", own=own)), "mixture_jump") == []


def test_a_corpus_that_is_read_too_often_is_an_error_where_the_path_passes_the_limit(family):
    settings = {"corpora.slimpajama.max_epochs": 3, "corpora.skypile.max_epochs": 1}
    messages = only(lint(family(**SWEEP, settings=settings)), "max_epochs")
    assert [message.split(";")[0] for message in messages] == [
        "corpora.slimpajama.max_epochs=3: slimpajama is read 3.19 times from the root to the end of stage cooldown of "
        "standard",
        "corpora.skypile.max_epochs=1: skypile is read 1.16 times from the root to the end of stage continual of "
        "chinese",
    ]


def test_epochs_are_told_once_on_a_path_and_the_limit_that_is_named_suffices(family):
    (message,) = only(lint(family(**SWEEP, settings={"corpora.skypile.max_epochs": 0.5})), "max_epochs")
    assert message.endswith("corpora.skypile.max_epochs=2")
    assert loud(lint(family(**SWEEP, settings={"corpora.skypile.max_epochs": 2}))) == []
    assert loud(lint(family(**SWEEP, settings={"corpora.skypile.max_epochs": None}))) == []


def test_a_corpus_of_less_than_a_sample_a_batch_is_a_warning_where_the_batch_is_too_small(family):
    starved = {"data_mix.weights.proof_pile_2": 0.1}
    nodes = family("+variant=math_code", "stage=cooldown", settings=starved)
    (message,) = only(lint(nodes), "starved_corpus")
    assert [node.plan.batch_samples for node in nodes] == [896, 896, 3584]
    assert message.startswith("data_mix.weights.proof_pile_2=0.1 is 0.99 samples of a batch of 896")
    enough = {"data_mix.weights.proof_pile_2": 0.102}
    assert loud(lint(family("+variant=math_code", "stage=cooldown", settings=enough))) == []


def test_a_corpus_smaller_than_its_ramp_reads_is_a_warning(family):
    few, more = (
        {"corpora.skypile.tokens": tokens, "corpora.skypile.max_epochs": None} for tokens in (10**9, 16 * 10**8)
    )
    (message,) = only(lint(family("+variant=chinese", "stage=continual", settings=few)), "short_for_ramp")
    assert "the ramp of stage continual alone reads skypile 1.5 times" in message
    assert "shorten the ramp to 3999" in message
    assert loud(lint(family("+variant=chinese", "stage=continual", settings=more))) == []


@pytest.mark.parametrize("glob", ["python/*.parquet", "**/part-0.parquet", "jupyter-scripts/x.parquet"])
def test_corpora_that_read_the_same_rows_of_the_same_files_are_an_error(family, glob):
    files = family("stage=basic")[0].config.corpora["starcoder"].files
    both = {
        "corpora.proof_pile_2.files": [files[0].replace("python/*.parquet", glob)],
        "corpora.proof_pile_2.text_field": "content",
    }

    def messages(settings, variant="math_code"):
        return only(lint(family(f"+variant={variant}", "stage=cooldown", settings=settings)), "shared_files")

    (message,) = messages(both)
    assert message.startswith("corpora.proof_pile_2.files=") and glob in message
    assert "corpora.starcoder.files=" in message
    assert messages({**both, "corpora.starcoder.keep": {"license": ["mit"]}}) == []
    assert messages({**both, "corpora.proof_pile_2.text_field": "comment"}) == []
    assert messages(both, variant="chinese") == [], "nobody reads both"


def test_a_stage_whose_order_leaves_its_parents_within_an_epoch_is_warned_of(family):
    def messages(*lengths):
        return only(lint(family("+variant=chinese", "stage=cooldown", *lengths)), "reordered_epoch")

    (message,) = messages("stage.seq_len=4096")
    assert message.startswith("stage.seq_len=4096 has another order than the 2048 of the parent of stage cooldown")
    assert re.search(r"within the running epoch of slimpajama \(\d+% of it is read\), skypile \(\d+% of it", message)
    assert len(messages("++stages.continual.seq_len=4096")) == 2, "there and back"
    assert messages("++stages.basic.seq_len=1024", "++stages.continual.seq_len=512") == []
    assert messages("model.seq_len=4096", "packing.seq_len=2048") == [], "all stages in one order"


@pytest.mark.parametrize("shards, left", [([64] * 40 + [63], 3), ([6] * 40, 80)])
def test_what_joining_leaves_out_is_noted_above_a_hundredth(compose, nothing, shards, left):
    path = compose("+scale=demo", "stage=basic", "stage.seq_len=512", nothing)
    names = path[-1].corpora
    inventory = Inventory({name: Corpus(name, f"of {name}", tuple(shards)) for name in names}, "of the tokenizer")
    found = lint(grow([Job((), path, make_plan(path, inventory))]))
    words = f"stage.seq_len=512 leaves out {left} of the {sum(shards)} prepared samples of slimpajama: 4 of one shard"
    assert View(joined=4).left_out(shards) == left
    assert [message[: len(words)] for message in only(found, "left_out")] == [words] * (100 * left > sum(shards))


def test_a_version_that_was_chosen_is_noted(compose):
    path = compose("+scale=demo", "stage=basic", "corpora.slimpajama.version=ab12")
    corpus = Corpus("slimpajama", "ab12" + "0" * 60, (64,) * 40)

    def messages(corpus):
        plan = make_plan(path, Inventory({"slimpajama": corpus}, "of the tokenizer"))
        return only(lint(grow([Job((), path, plan)])), "pinned_version")

    (message,) = messages(corpus)
    assert message.startswith("corpora.slimpajama.version=ab12: ") and "(fingerprint ab1200000000)" in message
    assert messages(replace(corpus, prepared=False)) == []


# ---------------------------------------------------------------- size


def test_tokens_that_are_not_whole_batches_are_noted_with_what_is_trained(family):
    found = lint(family("stage=basic", settings={"stage.tokens": 10**10}))
    (message,) = only(found, "rounded_tokens")
    assert message.startswith("stage.tokens=10000000000 of stage basic")
    assert message.endswith("5450 steps are trained, 10000793600 tokens")
    assert [each.level for each in found] == ["note"]
    assert lint(family("stage=basic", settings={"stage.tokens": 10_000_793_600})) == ()


CRAMPED = {"cluster.micro_batch": 14}
A100 = "cluster=a100_40g_x4"


def test_a_cluster_whose_memory_does_not_suffice_is_an_error_with_ways_that_do(family):
    nodes = family(A100, "+variant=chinese", "stage=cooldown", settings=CRAMPED)
    (message,) = only(lint(nodes), "memory")
    need = estimate_memory(nodes[0].config).gib
    assert need > 39.4 and message.startswith(f"cluster.micro_batch=14 needs {need:.3g} GiB per GPU")
    assert "cluster.gpu_memory_gib=39.4 of A100-SXM4-40GB" in message
    assert message.endswith("set cluster.micro_batch=7 or cluster.activation_checkpointing=true")
    for remedy in ({"cluster.micro_batch": 7}, {"cluster.activation_checkpointing": True}):
        assert loud(lint(family(A100, "+variant=chinese", "stage=cooldown", settings={**CRAMPED, **remedy}))) == []


def test_where_one_change_is_not_enough_two_are_named(family):
    cramped = {**CRAMPED, "cluster.gpu_memory_gib": 8}
    (message,) = only(lint(family(A100, settings=cramped)), "memory")
    assert message.endswith("set cluster.activation_checkpointing=true cluster.micro_batch=2")
    remedy = {"cluster.activation_checkpointing": True, "cluster.micro_batch": 2}
    assert loud(lint(family(A100, settings={**cramped, **remedy}))) == []


def test_where_nothing_helps_it_says_so(family):
    (message,) = only(lint(family(A100, settings={**CRAMPED, "cluster.gpu_memory_gib": 1})), "memory")
    assert message.endswith("choose a smaller model or a cluster whose GPUs have more memory")


# ---------------------------------------------------------------- all of them


def test_a_lint_that_is_ignored_does_not_speak(family):
    def names(*ignore):
        settings = {"schedule.min_learning_rate": 4e-4, "stage.ramp_tokens": 0, "lints.ignore": list(ignore)}
        return [each.name for each in lint(family("+variant=chinese", "stage=continual", settings=settings))]

    assert names() == ["floor_above_peak", "mixture_jump", "rounded_tokens", "rounded_tokens"]
    assert names("floor_above_peak", "rounded_tokens") == ["mixture_jump"]


def test_an_unknown_lint_is_refused_with_the_nearest_name(family):
    with pytest.raises(ConfigError, match="lints.ignore=max_epoch is not known; did you mean max_epochs"):
        lint(family(settings={"lints.ignore": ["max_epoch"]}))


def test_errors_stop_all_in_one_message_and_warnings_do_not(family):
    one = {"schedule.min_learning_rate": 4e-4}
    errors = [each for each in lint(family(settings=one)) if each.level == "error"]
    with pytest.raises(ConfigError) as refusal:
        require_no_errors(errors)
    assert [str(refusal.value)] == [str(each) for each in errors] == [f"{errors[0].message} [floor_above_peak]"]
    both = [
        each for each in lint(family(settings={**one, "corpora.slimpajama.max_epochs": 2})) if each.level == "error"
    ]
    with pytest.raises(ConfigError) as refusal:
        require_no_errors(both)
    assert str(refusal.value).splitlines() == ["2 faults", *(f"  {each}" for each in both)]
    require_no_errors(lint(family("stage=cooldown", settings={"schedule.horizon_tokens": 3 * 10**12})))


def test_every_message_begins_with_a_setting_that_there_is(family):
    settings = {
        **CRAMPED, "schedule.min_learning_rate": 4e-4, "schedule.horizon_tokens": 10**12, "stage.ramp_tokens": 0,
        "corpora.slimpajama.max_epochs": 2, "data_mix.weights.skypile": 0.01,
    }  # fmt: skip
    own = {"continual": {"schedule.min_learning_rate": 5e-4}}
    faulty = family(A100, "+variant=chinese", "stage=continual", settings=settings, own=own)
    found = lint(faulty)
    assert len({each.name for each in found}) == 8
    for each in found:
        assert each.message.startswith(f"{each.setting}=")
        with_settings(faulty[-1].config, {each.setting: None})


def test_the_page_about_lints_tells_of_each_with_its_level():
    rows = [line.split("|") for line in (DOCS / "lints.md").read_text().splitlines() if line.startswith("| `")]
    told = {row[1].strip(" `"): row[2].strip() for row in rows}
    assert told == {name: level for name, (level, _) in LINTS.items()}
