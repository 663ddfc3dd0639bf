"""What changes a digest, and what never does."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from tinyllama.config import schema
from tinyllama.config.schema import RunConfig
from tinyllama.data.inventory import take_inventory
from tinyllama.planning.corpora import Corpus, Inventory
from tinyllama.planning.identity import Difference, differences, digest, meaning
from tinyllama.planning.plan import make_plan, target_weights

NAMES = ("slimpajama", "starcoder", "proof_pile_2", "skypile")
PREPARED = Inventory({name: Corpus(name, f"of {name}", (64,) * 40) for name in NAMES}, "of the tokenizer")
CHINESE = ("+scale=demo", "+variant=chinese", "stage=continual")

# ---------------------------------------------------------------- the schema's two halves

MEANING = {
    schema.ModelConfig, schema.TokenizerConfig, schema.CorpusConfig, schema.MixConfig, schema.StageConfig,
    schema.ScheduleConfig, schema.OptimizerConfig, schema.OrderConfig, schema.PackingConfig,
}  # fmt: skip
PLACEMENT = {
    schema.ClusterConfig, schema.PathsConfig, schema.TrackingConfig, schema.CheckpointConfig, schema.ValidationConfig,
    schema.LintsConfig, schema.WatchConfig, schema.DrillConfig, schema.SlurmConfig,
    schema.ContainerConfig, schema.PreparationConfig, schema.ExportConfig, schema.GenerationConfig,
    schema.EvaluationConfig, schema.ReportConfig,
}  # fmt: skip
RUN_MEANING = {"seed"}
"""Fields of RunConfig that belong to no class and count."""
RUN_PLACEMENT = {
    "family", "variant", "log_every_steps", "trace", "profile", "format", "branch", "adopt", "plots", "run", "contains",
    "action", "sample", "split", "out", "at_tokens", "prompt",
}  # fmt: skip
"""Those that do not."""
LABELS = {
    "model.name": "people call it so",
    "tokenizer.name": "people call it so",
    "tokenizer.path": "its content counts, by the digest of the file",
    "root_mix.name": "people call it so",
    "data_mix.name": "people call it so",
    "packing.seq_len": "the fingerprints of the corpora tell at which length they were prepared",
    "stage.parent": "the parent counts by its digest",
    "stage.seq_len": "a stage is composed with it as its model.seq_len, which counts",
    "parent": "short for stage.parent",
    "stages": "read while a path is composed, as the ancestors' stage.*",
    "corpora.": "a corpus counts by the fingerprint of what was made of it",
}
"""What of the meaning half does not count by itself, and why; a name that ends with a dot stands for all below it."""
CHOSEN = {
    "schedule.name": "constant",
    "stage.fork_at_tokens": 100_000,
    "root_mix.weights": {"slimpajama": 3.0, "skypile": 1.0},
}
"""Changed values where one made from the type alone would be no possible run, or the same proportions."""
OPTIONAL = {"cluster.slurm.container": schema.ContainerConfig(kind=schema.ContainerKind.pyxis, image="image.sqsh")}
"""What is changed where nothing stands."""
OF_A_STAGE_WITH_THE_ROOT_MIX = "root_mix."


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, type, Any]]:
    """Every setting: its dotted name, the class that declares it, and its type."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        hint, name = hints[field.name], prefix + field.name
        hint = next((each for each in get_args(hint) if name in OPTIONAL and is_dataclass(each)), hint)
        if is_dataclass(hint):
            yield from leaves(hint, f"{name}.")
        elif get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            yield from leaves(get_args(hint)[1], f"{name}.skypile.")
        else:
            yield name, cls, hint


def is_label(setting: str) -> bool:
    return any(setting.startswith(label) if label.endswith(".") else setting == label for label in LABELS)


def counts(setting: str, cls: type) -> bool:
    """Whether a setting is declared to enter the digest; a setting that nobody assigned is an error."""
    if is_label(setting):
        return False
    if cls is RunConfig:
        assert (setting in RUN_MEANING) != (setting in RUN_PLACEMENT), f"RunConfig.{setting} belongs to no half"
        return setting in RUN_MEANING
    assert (cls in MEANING) != (cls in PLACEMENT), f"{cls.__name__} belongs to no half"
    return cls in MEANING


def changed(value: Any, hint: Any) -> Any:
    """Another value of the same type."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
        value = _example(hint) if value is None else value
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        others = [each for each in type(value) if each is not value]
        return others[0]
    if isinstance(value, int | float):
        return value * 2 or 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [changed(value[0], get_args(hint)[0]), *value[1:]] if value else [_example(get_args(hint)[0])]
    if isinstance(value, dict):
        first = next(iter(value), "x")
        return {**value, first: changed(value.get(first), get_args(hint)[1] | None)}
    raise NotImplementedError(f"no change is known for {hint}")


def _example(hint: Any) -> Any:
    if hint is Any:
        return 1
    return get_origin(hint)() if get_origin(hint) else hint()


def with_change(config: Any, setting: str, hint: Any, whole: str | None = None) -> Any:
    """The config with one leaf changed; nothing of the original is touched."""
    whole = whole or setting
    name, _, rest = setting.partition(".")
    value = config[name] if isinstance(config, dict) else getattr(config, name)
    if rest:
        value = OPTIONAL[whole.removesuffix(f".{rest}")] if value is None else value
        new = with_change(value, rest, hint, whole)
    else:
        new = CHOSEN[whole] if whole in CHOSEN else changed(value, hint)
        assert new != value
    return {**config, name: new} if isinstance(config, dict) else replace(config, **{name: new})


LEAVES = list(leaves(RunConfig))
COUNT = [(setting, hint) for setting, cls, hint in LEAVES if counts(setting, cls)]
DO_NOT_COUNT = [(setting, hint) for setting, cls, hint in LEAVES if not counts(setting, cls)]


@pytest.fixture
def path(compose):
    return compose(*CHINESE)


@pytest.mark.parametrize("setting, hint", COUNT, ids=[setting for setting, _ in COUNT])
def test_a_setting_of_the_meaning_half_changes_the_digest(path, setting, hint):
    # The last stage alone is changed, so that nothing but its own meaning can move its digest.
    *ancestors, last = path[:1] if setting.startswith(OF_A_STAGE_WITH_THE_ROOT_MIX) else path
    before, after = (
        make_plan([*ancestors, last], PREPARED),
        make_plan([*ancestors, with_change(last, setting, hint)], PREPARED),
    )
    assert after.digest != before.digest
    assert differences(before.meaning, after.meaning)


@pytest.mark.parametrize("setting, hint", DO_NOT_COUNT, ids=[setting for setting, _ in DO_NOT_COUNT])
def test_a_setting_of_the_placement_half_and_a_label_keep_the_digest(path, setting, hint):
    elsewhere = [with_change(config, setting, hint) for config in path]
    assert make_plan(elsewhere, PREPARED).digest == make_plan(path, PREPARED).digest


def test_every_class_of_the_schema_belongs_to_one_half():
    classes = {
        each for _, each in inspect.getmembers(schema, is_dataclass) if each.__module__.startswith(schema.__name__)
    }
    assert classes == MEANING | PLACEMENT | {RunConfig}
    assert not MEANING & PLACEMENT
    assert {cls for _, cls, _ in LEAVES} == classes, "a class that no run has"


def test_every_exception_is_a_setting_of_the_meaning_half():
    classes = {setting: cls for setting, cls, _ in LEAVES}
    own = RUN_MEANING | RUN_PLACEMENT
    assert own <= set(classes)
    for name in (*LABELS, *CHOSEN):
        found = [cls for setting, cls in classes.items() if setting.startswith(name)]
        assert found and all(cls in MEANING or cls is RunConfig for cls in found), name


def test_a_setting_that_nobody_assigned_is_noticed():
    class New: ...

    with pytest.raises(AssertionError, match="New belongs to no half"):
        counts("new.field", New)
    with pytest.raises(AssertionError, match=r"RunConfig\.new belongs to no half"):
        counts("new", RunConfig)


# ---------------------------------------------------------------- what the types alone do not tell


@pytest.fixture
def digest_of(compose):
    def find(*overrides, inventory=PREPARED):
        return make_plan(compose(*CHINESE, *overrides), inventory).digest

    return find


@pytest.mark.parametrize(
    "override",
    ["optimizer.learning_rate=0.0030", "data_mix.weights={slimpajama: 5, skypile: 5}", "model.rope_theta=10000",
     "stage.tokens=0.12M", "tracking=none", "++stages.continual.tokens=120_000"],
)  # fmt: skip
def test_how_a_value_is_spelled_keeps_the_digest(digest_of, override):
    assert digest_of(override) == digest_of()


def test_a_context_counts_once_whichever_setting_gave_it(digest_of):
    assert digest_of("stage.seq_len=128") == digest_of()
    assert digest_of("packing.seq_len=128") == digest_of()
    assert digest_of("stage.seq_len=64") != digest_of()
    both = ("++stages.basic.seq_len=64", "stage.seq_len=64")
    assert digest_of(*both) == digest_of("model.seq_len=64", "packing.seq_len=128") != digest_of("stage.seq_len=64")


def test_a_corpus_of_weight_0_does_not_count(digest_of):
    assert digest_of("+data_mix.weights.starcoder=0") == digest_of()
    assert digest_of("+data_mix.weights.starcoder=1") != digest_of()


def test_the_parent_counts_by_its_own_meaning(digest_of):
    assert digest_of("++stages.basic.tokens=400K") != digest_of()
    assert digest_of("stage=cooldown", "stage.parent=basic") != digest_of("stage=cooldown")


def test_the_content_of_a_corpus_changes_the_digest_of_those_who_read_it(digest_of):
    def with_other(name):
        return Inventory({**PREPARED.corpora, name: Corpus(name, "other", (64,) * 40)}, PREPARED.tokenizer_digest)

    assert digest_of(inventory=with_other("skypile")) != digest_of()
    assert digest_of(inventory=with_other("slimpajama")) != digest_of()
    assert digest_of(inventory=with_other("starcoder")) == digest_of()


def test_the_content_of_the_tokenizer_changes_the_digest(digest_of):
    assert digest_of(inventory=replace(PREPARED, tokenizer_digest="other")) != digest_of()


def test_one_weight_of_chinese_moves_its_two_runs_and_no_other(compose):
    def family(*overrides):
        return {
            plan.digest
            for variant in ("standard", "math_code", "chinese")
            for plan in make_plan(
                compose("+scale=demo", f"+variant={variant}", "stage=cooldown", *overrides * (variant == "chinese")),
                PREPARED,
            ).path
        }

    before, after = family(), family("data_mix.weights.skypile=51")
    assert len(before) == len(after) == 7
    assert len(before - after) == 2


def test_a_meaning_is_made_of_what_json_knows(path):
    config = replace(path[-1], optimizer=replace(path[-1].optimizer, betas=(0.9, 0.95)))
    what = meaning(config, target_weights(config), PREPARED, "of the parent")
    assert json.loads(json.dumps(what)) == what
    assert differences(what, make_plan(path, PREPARED).meaning) == [
        Difference("parent", "of the parent", make_plan(path, PREPARED).parent.digest)
    ]


def test_where_a_ramp_starts_counts_when_no_parent_tells(path):
    config, weights = path[-1], target_weights(path[-1])
    plain = meaning(config, weights, PREPARED, "hf:of a folder")
    starts = [meaning(config, weights, PREPARED, "hf:of a folder", {"starcoder": share}) for share in (0.5, 1.0)]
    assert len({digest(what) for what in (plain, *starts)}) == 3
    assert "starcoder" in starts[0]["corpora"] and "starcoder" not in plain["corpora"]


FAMILY = {
    "basic": "1fddbf3198556f9c83a81f71b7d2913b5dd7cc1cd0e266d3d8edd7e3e451cd48",
    "standard continual": "1aa669f4bb2682eea95af1ee91ca4893a6c35a3b6f66ab25d0b107f6ce2862b3",
    "standard cooldown": "7955d6ff88d04b42036ef00ab3d2ad798b5b3865b92cd643e47f04d7deaa2736",
    "math_code continual": "98651b1906c98d99e522f1325a04bcfa467eed40e697a065199f852434f44447",
    "math_code cooldown": "1644d8f4747b3999812acef3010ddcb197c3e262f22452244878882732550e10",
    "chinese continual": "2dc5fcffe6e8b5e511aebeab7c2a7c7a55b0216d92435a2ba23933a487e176f5",
    "chinese cooldown": "32c8b1fe562ae5dc092ed399bc93505ba6e9a2d333e3c099c93e4ebcc2914cfc",
}
"""The family at full scale, its corpora not prepared. Runs are found by their digest: one that moves orphans them."""


@pytest.mark.parametrize("variant", ["standard", "math_code", "chinese"])
def test_the_familys_digests_stay_for_ever(compose, tmp_path, variant):
    path = compose(f"+variant={variant}", "stage=cooldown", f"paths.data={tmp_path}")
    basic, continual, cooldown = make_plan(path, take_inventory(path)).path
    assert basic.digest == FAMILY["basic"]
    assert continual.digest == FAMILY[f"{variant} continual"]
    assert cooldown.digest == FAMILY[f"{variant} cooldown"]
