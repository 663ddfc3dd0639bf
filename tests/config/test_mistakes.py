"""Every mistake ends in one message with the setting, its value, the rule and the remedy, and exit code 2."""

import pytest

MISTAKES = {
    "an option that no group has": (["stage=contnual"], ["stage=contnual is not known", "did you mean continual"]),
    "a misspelt setting": (["stage.tokns=5"], ["stage.tokns=5: there is no such setting", "stage.tokens"]),
    "a misspelt setting, added": (["+stage.tokns=5"], ["+stage.tokns=5: there is no such setting", "stage.tokens"]),
    "a misspelt group": (["modle=nano"], ["modle=nano", "did you mean model"]),
    "a variant that is not appended": (["variant=chinese"], ["variant=chinese", "+variant=chinese"]),
    "an interval of nothing": (["evaluation.every_tokens=0"], ["evaluation.every_tokens=0 must be above 0"]),
    "nothing to ask": (["evaluation.tasks=[]"], ["evaluation.tasks=[]", "perplexity"]),
    "a wrong type": (["model.num_layers=many"], ["model.num_layers=many", "Integer"]),
    "a wrong choice": (["format=xml"], ["format=xml", "text, json"]),
    "no value where one is needed": (["seed=null"], ["seed=null"]),
    "a value that is no override": (["cluster.micro_batch=[1"], ["cluster.micro_batch=[1 cannot be read"]),
    "several values without -m": (["stage=basic,continual"], ["stage=basic,continual", "-m"]),
    "an interpolation of nothing": (["paths.runs=${nowhere}"], ["paths.runs", "nowhere"]),
    "tokens that are no number": (["stage.tokens=lots"], ["stage.tokens=lots", "1.5T"]),
    "a negative weight": (["data_mix.weights.slimpajama=-1"], ["data_mix.weights.slimpajama=-1", "0 or more"]),
    "weights that sum to zero": (["root_mix.weights.slimpajama=0"], ["root_mix.weights sum to zero", "above 0"]),
    "a corpus that is not configured": (
        ["+data_mix.weights.slimpyjama=3"],
        ["data_mix.weights.slimpyjama=3", "did you mean slimpajama", "conf/corpus/slimpyjama.yaml"],
    ),
    "a ramp longer than the stage": (
        ["stage=continual", "stage.ramp_tokens=400B"],
        ["stage.ramp_tokens=400000000000", "stage.tokens=350000000000", "shorten the ramp"],
    ),
    "a ramp without a parent": (["stage.ramp_tokens=1B"], ["stage.ramp_tokens=1000000000", "no parent"]),
    "a batch that the cluster cannot cut": (
        ["cluster=h100_x8", "stage.batch_tokens=2_000_896"],
        ["stage.batch_tokens=2000896", "8 nodes x 8 processes x micro-batch 14 x 2048", "nearest: 1835008 and 3670016"],
    ),
    "a batch of broken samples": (
        ["stage.batch_tokens=1000"],
        ["stage.batch_tokens=1000", "model.seq_len=2048", "2048"],
    ),
    "a length between the pieces of prepared samples": (
        ["model.seq_len=1536", "packing.seq_len=2048", "stage.batch_tokens=1536K"],
        ["model.seq_len=1536", "packing.seq_len=2048", "nearest: 1024 and 2048", "with packing.seq_len=1536"],
    ),
    "a length between multiples of prepared samples": (
        ["stage.seq_len=5000", "stage.batch_tokens=2M"],
        ["stage.seq_len=5000", "packing.seq_len=2048", "nearest: 4096 and 6144", "with packing.seq_len=5000"],
    ),
    "a batch that the stage's own samples do not fill": (
        ["stage.seq_len=4096", "stage.batch_tokens=6144"],
        ["stage.batch_tokens=6144", "stage.seq_len=4096", "nearest: 4096 and 8192"],
    ),
    "no length of prepared samples": (["packing.seq_len=0"], ["packing.seq_len=0", "above 0"]),
    "a stage below one batch": (["stage.tokens=1M"], ["stage.tokens=1000000", "less than one batch"]),
    "a floor at the peak": (
        ["schedule.min_learning_rate=4e-4"],
        ["schedule.min_learning_rate=0.0004", "optimizer.learning_rate=0.0004", "4e-05"],
    ),
    "a horizon within the path": (
        ["stage=cooldown", "schedule.horizon_tokens=1.9T"],
        ["schedule.horizon_tokens=1900000000000", "basic 1.5T -> continual 350B -> cooldown 150B", "2000000000000"],
    ),
    "a floor below nothing": (["schedule.min_learning_rate=-1"], ["schedule.min_learning_rate=-1", "0 or more"]),
    "a corpus read too often": (
        ["corpora.slimpajama.max_epochs=2"],
        ["corpora.slimpajama.max_epochs=2", "2.39 times", "corpora.slimpajama.max_epochs=3", "[max_epochs]"],
    ),
    "two faults of the plan": (
        ["corpora.slimpajama.max_epochs=2", "schedule.horizon_tokens=1T"],
        ["2 faults", "[horizon_short]", "[max_epochs]"],
    ),
    "no epochs": (["corpora.slimpajama.max_epochs=0"], ["corpora.slimpajama.max_epochs=0", "above 0"]),
    "a lint that there is not": (
        ["lints.ignore=[max_epoch]"],
        ["lints.ignore=max_epoch is not known", "did you mean max_epochs"],
    ),
    "a warm-up beyond the horizon": (
        ["schedule.warmup_tokens=3T"],
        ["schedule.warmup_tokens=3000000000000", "schedule.horizon_tokens=2000000000000"],
    ),
    "a parent that does not exist": (
        ["stage=continual", "stage.parent=basics"],
        ["stage=basics", "did you mean basic"],
    ),
    "a circle of parents": (["stage=continual", "stage.parent=continual"], ["stage.parent=continual closes a circle"]),
    "vocabularies that differ": (
        ["tokenizer=demo"],
        ["model.vocab_size=32000", "tokenizer.vocab_size=4096", "tokenizer=demo"],
    ),
    "heads that do not divide": (
        ["model.num_heads=3"],
        ["model.hidden_size=2048", "model.num_heads=3", "2046 and 2049"],
    ),
    "a network that carries nothing": (["cluster.network_gb_per_second=0"], ["cluster.network_gb_per_second=0"]),
    "a ZeRO stage that is not offered": (["cluster.zero_stage=0"], ["cluster.zero_stage=0", "1, 2 or 3"]),
    "checkpointing of another kind": (
        ["cluster.activation_checkpointing=some"],
        ["cluster.activation_checkpointing=some must be true, false or selective"],
    ),
    "sharding within nodes without stage 3": (
        ["cluster.shard_within_node=true"],
        ["cluster.shard_within_node=true", "cluster.zero_stage=3"],
    ),
    "betas of three": (["optimizer.betas=[0.9,0.95,0.99]"], ["optimizer.betas=[0.9, 0.95, 0.99]", "two numbers"]),
    "no micro-batch": (["cluster.micro_batch=0"], ["cluster.micro_batch=0", "above 0"]),
    "lanes that do not divide the batch": (["order.lanes=5"], ["stage.batch_tokens=1835008", "order.lanes"]),
    "a schedule in no table": (["schedule.name=cosin"], ["schedule.name=cosin", "did you mean cosine"]),
    "a fork outside of the parent": (
        ["stage=continual", "stage.fork_at_tokens=1.6T"],
        ["stage.fork_at_tokens=1600000000000", "1499999764480"],
    ),
    "a misspelt setting of SLURM": (
        ["cluster.slurm.patition=x"],
        ["cluster.slurm.patition=x: there is no such setting", "did you mean cluster.slurm.partition"],
    ),
    "a setting of SLURM that is like none": (
        ["cluster.slurm.xyz=1"],
        ["cluster.slurm.xyz=1: there is no such setting", "cluster.slurm has partition, account, qos, time_hours"],
    ),
    "a setting that no launcher has": (
        ["hydra.launcher.xyz=1"],
        ["hydra.launcher.xyz=1", "hydra/launcher=local has hydra.launcher.jobs", "slurm has hydra.launcher.tasks"],
    ),
    "a setting of another launcher": (
        ["hydra/launcher=slurm", "hydra.launcher.jobs=2"],
        ["hydra.launcher.jobs=2", "hydra/launcher=slurm has hydra.launcher.tasks"],
    ),
    "a launcher that there is not": (["hydra/launcher=slrum"], ["hydra/launcher=slrum", "did you mean slurm"]),
    "no time for a job": (["cluster.slurm.time_hours=0"], ["cluster.slurm.time_hours=0", "above 0"]),
    "a notice as long as the job": (
        ["cluster.slurm.time_hours=0.05"],
        ["cluster.slurm.notice_seconds=300", "cluster.slurm.time_hours=0.05 (180 seconds)"],
    ),
    "fewer GPUs than none": (["cluster.slurm.gpus_per_node=-1"], ["cluster.slurm.gpus_per_node=-1", "0 or more"]),
    "an option of sbatch that is a setting": (
        ["+cluster.slurm.options.time=60"],
        ["cluster.slurm.options.time=60", "set cluster.slurm.time_hours"],
    ),
    "an option of sbatch that is ours": (
        ["+cluster.slurm.options.dependency=singleton"],
        ["cluster.slurm.options.dependency=singleton", "remove it"],
    ),
    "an option of srun that is ours": (
        ["+cluster.slurm.srun_options.kill-on-bad-exit=0"],
        ["cluster.slurm.srun_options.kill-on-bad-exit=0", "srun", "remove it"],
    ),
    "a family that is no folder": (["family=a/b"], ["family=a/b", "letters"]),
    "a corpus that is not prepared": (
        ["stage=basic"],
        ["corpus slimpajama", "not prepared", "python -m tinyllama.prepare corpus=slimpajama"],
    ),
}


@pytest.mark.parametrize("overrides, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_on_the_command_line_gets_one_message_and_writes_nothing(run, tmp_path, overrides, words):
    paths = [f"paths.runs={tmp_path / 'runs'}", f"paths.data={tmp_path / 'data'}"]
    result = run("train", *(path for path in paths if path.split("=")[0] not in " ".join(overrides)), *overrides)
    assert result.code == 2
    assert result.out == ""
    for word in words:
        assert word in result.err
    assert result.err.startswith("error: ") and "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    [
        "an option that no group has",
        "a negative weight",
        "weights that sum to zero",
        "a corpus that is not configured",
        "a ramp longer than the stage",
        "a ramp without a parent",
    ],
)
def test_a_sweep_refuses_the_same_mistakes_before_it_trains_anything(run, tmp_path, mistake):
    overrides, words = MISTAKES[mistake]
    result = run("train", "-m", f"paths.runs={tmp_path / 'runs'}", f"paths.data={tmp_path / 'data'}", *overrides)
    assert result.code == 2
    for word in words:
        assert word in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_file_names_the_setting(run, tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "mine.yaml").write_text("name: mine\ntokens: 1T\nbatch_tokens: 1_835_008\nramp: 3\n")
    result = run("train", f"hydra.searchpath=[file://{tmp_path}]", "stage=mine")
    assert result.code == 2
    assert "stage.ramp" in result.err and "stage.ramp_tokens" in result.err


def test_a_setting_that_a_file_forgot_is_named(run, tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "mine.yaml").write_text("name: mine\nbatch_tokens: 1_835_008\n")
    result = run("train", f"hydra.searchpath=[file://{tmp_path}]", "stage=mine")
    assert result.code == 2
    assert "stage.tokens has no value" in result.err
