"""What must hold within a run's settings. Checks never repair: they return, or raise one ConfigError.

What only shows in the arithmetic of a path or a family is a lint: planning/lints.py.
"""

from collections.abc import Mapping, Sequence

from tinyllama.config.schema import (
    ClusterConfig,
    CorpusConfig,
    EvaluationConfig,
    GenerationConfig,
    MixConfig,
    RunConfig,
    SlurmConfig,
)
from tinyllama.errors import ConfigError, unknown
from tinyllama.world import given_ranks, visible_gpus

_OURS = "the tree decides it, or the life of a job"
_SET_ELSEWHERE = {
    "sbatch": {
        "partition": "cluster.slurm.partition",
        "account": "cluster.slurm.account",
        "qos": "cluster.slurm.qos",
        "time": "cluster.slurm.time_hours",
        "nodes": "cluster.nodes",
        "ntasks": "cluster.processes",
        "ntasks-per-node": "cluster.processes",
        "cpus-per-task": "cluster.slurm.cpus_per_rank",
        "gpus-per-node": "cluster.slurm.gpus_per_node",
        "mem": "cluster.slurm.memory_gib",
        "exclusive": "cluster.slurm.exclusive",
        "constraint": "cluster.slurm.constraint",
    }
    | dict.fromkeys(("array", "chdir", "dependency", "error", "export", "job-name", "kill-on-invalid-dep"), _OURS)
    | dict.fromkeys(("no-requeue", "open-mode", "output", "parsable", "requeue", "signal", "wrap"), _OURS),
    "srun": {
        "nodes": "cluster.nodes",
        "ntasks": "cluster.processes",
        "ntasks-per-node": "cluster.processes",
        "cpus-per-task": "cluster.slurm.cpus_per_rank",
    }
    | dict.fromkeys(("error", "kill-on-bad-exit", "open-mode", "output", "wait"), _OURS),
}
"""Options that are not for `options` and `srun_options`: the settings that say the same, or why there is none."""


def check_path(path: Sequence[RunConfig]) -> None:
    """Check a stage and its ancestors, the root first.

    Raises:
        ConfigError: setting, value, rule and remedy of the first thing that is wrong.
    """
    for config in path:
        check_run(config)


def check_run(config: RunConfig) -> None:
    """Check one stage's config by itself."""
    _check_label("family", config.family)
    _check_label("variant", config.variant)
    _check_label("stage.name", config.stage.name)
    _check_model(config)
    _check_lengths(config)
    _check_mix("root_mix", config.root_mix, config.corpora)
    _check_mix("data_mix", config.data_mix, config.corpora)
    _check_optimizer(config)
    _check_stage(config)
    _check_cluster(config.cluster)
    _check_batch(config)
    _check_intervals(config)
    _check_corpora(config.corpora)
    check_evaluation(config.evaluation)


def check_generation(generation: GenerationConfig) -> None:
    """Check how a text is to be continued.

    Raises:
        ConfigError: setting, value, rule and remedy of the first thing that is wrong.
    """
    _check_positive({"generation.max_tokens": generation.max_tokens})
    if not 0 <= generation.temperature < float("inf"):
        raise ConfigError(
            f"generation.temperature={generation.temperature:g} must be 0 or more; 0 takes the likeliest token each "
            f"time"
        )
    if generation.top_k is not None:
        _check_positive({"generation.top_k": generation.top_k})
    if generation.top_p is not None and not 0 < generation.top_p <= 1:
        raise ConfigError(
            f"generation.top_p={generation.top_p:g} must be above 0 and at most 1, where it limits nothing"
        )
    if not 0 <= generation.seed < 2**63:
        raise ConfigError(f"generation.seed={generation.seed} must be 0 or more, and below 2^63")


def check_evaluation(evaluation: EvaluationConfig) -> None:
    """Check what is to be asked of models.

    Raises:
        ConfigError: setting, value, rule and remedy of the first thing that is wrong.
    """
    if not evaluation.tasks:
        raise ConfigError("evaluation.tasks=[] asks nothing; name suites such as commonsense, tasks, or perplexity")
    settings = {
        "evaluation.limit": evaluation.limit,
        "evaluation.batch_size": evaluation.batch_size,
        "evaluation.every_tokens": evaluation.every_tokens,
    }
    _check_positive({setting: value for setting, value in settings.items() if value is not None})


def processes_per_node(cluster: ClusterConfig) -> int:
    """Ranks that a node runs: as configured, else one per visible GPU, else one."""
    return cluster.processes if cluster.processes is not None else max(1, visible_gpus())


def total_ranks(cluster: ClusterConfig) -> int:
    """Ranks of all nodes: as many as torchrun or srun has started, else as configured."""
    given = given_ranks()
    return given if given is not None else cluster.nodes * processes_per_node(cluster)


def length_setting(config: RunConfig) -> str:
    """Which setting gave a stage its length."""
    return "model.seq_len" if config.stage.seq_len is None else "stage.seq_len"


def _check_label(setting: str, value: str) -> None:
    if not value or not value.replace("-", "").replace("_", "").replace(".", "").isalnum() or value.startswith("."):
        raise ConfigError(f"{setting}={value} names a folder or a file; use letters, digits, '_', '-' and '.'")


def _check_model(config: RunConfig) -> None:
    model = config.model
    sizes = {name: value for name, value in vars(model).items() if isinstance(value, int)}
    _check_positive({f"model.{name}": value for name, value in sizes.items()})
    _check_multiple("model.hidden_size", model.hidden_size, "model.num_heads", model.num_heads)
    _check_multiple("model.num_heads", model.num_heads, "model.num_kv_heads", model.num_kv_heads)
    if model.head_size % 2:
        raise ConfigError(
            f"model.hidden_size={model.hidden_size} gives heads of {model.head_size}, an odd size; rotary positions "
            f"turn pairs of features, so choose hidden_size / num_heads even"
        )
    if model.vocab_size != config.tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size={model.vocab_size} differs from tokenizer.vocab_size={config.tokenizer.vocab_size} "
            f"of tokenizer={config.tokenizer.name}; choose the tokenizer that belongs to the model, or set "
            f"model.vocab_size={config.tokenizer.vocab_size}"
        )


def _check_lengths(config: RunConfig) -> None:
    packed, seq_len = config.packing.seq_len, config.model.seq_len
    _check_positive({"packing.seq_len": packed})
    if packed % seq_len == 0 or seq_len % packed == 0:
        return
    raise ConfigError(
        f"{length_setting(config)}={seq_len} neither divides packing.seq_len={packed} nor is a multiple of it, so "
        f"prepared samples can neither be cut into such ones nor joined; nearest: {_nearest_lengths(seq_len, packed)}; "
        f"or prepare the corpora at that length too, with packing.seq_len={seq_len}"
    )


def _nearest_lengths(seq_len: int, packed: int) -> str:
    """The lengths around `seq_len` that samples of `packed` tokens can be read at."""
    if seq_len > packed:
        return f"{seq_len // packed * packed} and {-(-seq_len // packed) * packed}"
    below, above = packed // seq_len + 1, packed // seq_len
    while packed % below:
        below += 1
    while packed % above:
        above -= 1
    return f"{packed // below} and {packed // above}"


def _check_multiple(setting: str, value: int, divisor_setting: str, divisor: int) -> None:
    if value % divisor:
        raise ConfigError(
            f"{setting}={value} is not a multiple of {divisor_setting}={divisor}; {_nearest(value, divisor)}"
        )


def _check_mix(setting: str, mix: MixConfig, corpora: Mapping[str, object]) -> None:
    for name, weight in mix.weights.items():
        if name not in corpora:
            raise ConfigError(
                f"{setting}.weights.{name}={weight:g}: {unknown('corpus', name, corpora)}; "
                f"a corpus is configured by a file conf/corpus/{name}.yaml that the mix names in its defaults"
            )
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"{setting}.weights.{name}={weight:g} is not a weight; use a number of 0 or more")
    if not sum(mix.weights.values()) > 0:
        raise ConfigError(f"{setting}.weights sum to zero, so nothing would be read; give a corpus a weight above 0")


def _check_optimizer(config: RunConfig) -> None:
    optimizer, schedule = config.optimizer, config.schedule
    _check_positive({"optimizer.learning_rate": optimizer.learning_rate, "optimizer.eps": optimizer.eps,
                     "optimizer.max_grad_norm": optimizer.max_grad_norm})  # fmt: skip
    if not schedule.min_learning_rate >= 0:
        raise ConfigError(f"schedule.min_learning_rate={schedule.min_learning_rate:g} must be 0 or more")
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise ConfigError(
            f"optimizer.betas={optimizer.betas} must be two numbers from 0 to below 1, such as [0.9,0.95]"
        )
    if optimizer.weight_decay < 0:
        raise ConfigError(f"optimizer.weight_decay={optimizer.weight_decay:g} must be 0 or more")
    if schedule.warmup_tokens >= schedule.horizon_tokens:
        raise ConfigError(
            f"schedule.warmup_tokens={schedule.warmup_tokens} must end before "
            f"schedule.horizon_tokens={schedule.horizon_tokens}; shorten the warm-up or lengthen the horizon"
        )


def _check_stage(config: RunConfig) -> None:
    stage, seq_len = config.stage, config.model.seq_len
    _check_positive({"stage.tokens": stage.tokens, "stage.batch_tokens": stage.batch_tokens})
    if stage.batch_tokens % seq_len:
        raise ConfigError(
            f"stage.batch_tokens={stage.batch_tokens} is not a multiple of {length_setting(config)}={seq_len}; "
            f"{_nearest(stage.batch_tokens, seq_len)}"
        )
    if stage.tokens < stage.batch_tokens:
        raise ConfigError(
            f"stage.tokens={stage.tokens} is less than one batch (stage.batch_tokens={stage.batch_tokens}); "
            f"lengthen the stage or shrink the batch"
        )
    if stage.ramp_tokens > stage.tokens:
        raise ConfigError(
            f"stage.ramp_tokens={stage.ramp_tokens} is longer than the stage (stage.tokens={stage.tokens}), so the "
            f"target mixture would never be reached; shorten the ramp to {stage.tokens} or less"
        )
    if stage.ramp_tokens and stage.parent is None:
        raise ConfigError(
            f"stage.ramp_tokens={stage.ramp_tokens}: stage {stage.name} has no parent with a mixture to start from; "
            f"set stage.ramp_tokens=0 or name a stage.parent"
        )
    if stage.fork_at_tokens is not None and stage.parent_stage is None:
        raise ConfigError(f"stage.fork_at_tokens={stage.fork_at_tokens} needs a stage.parent to fork from")


def _check_cluster(cluster: ClusterConfig) -> None:
    counts = {"nodes": cluster.nodes, "processes": processes_per_node(cluster), "micro_batch": cluster.micro_batch}
    measures = ("node_gb_per_second", "network_gb_per_second", "gpu_memory_gib", "gpu_peak_tflops", "assumed_mfu")
    given = {name: value for name in measures if (value := getattr(cluster, name)) is not None}
    _check_positive({f"cluster.{name}": value for name, value in (counts | given).items()})
    if cluster.zero_stage not in (1, 2, 3):
        raise ConfigError(
            f"cluster.zero_stage={cluster.zero_stage} must be 1, 2 or 3; stage 1 shards the optimizer's state alone "
            f"and serves a single process too"
        )
    if cluster.shard_within_node and cluster.zero_stage != 3:
        raise ConfigError(
            f"cluster.shard_within_node=true keeps a node's copy of sharded weights, which only ZeRO stage 3 has; "
            f"set cluster.zero_stage=3 (it is {cluster.zero_stage})"
        )
    if cluster.activation_checkpointing not in (True, False, "selective"):
        raise ConfigError(
            f"cluster.activation_checkpointing={cluster.activation_checkpointing} must be true, false or selective"
        )
    if cluster.workers < 0:
        raise ConfigError(f"cluster.workers={cluster.workers} must be 0 or more")
    _check_slurm(cluster.slurm)


def _check_slurm(slurm: SlurmConfig) -> None:
    names = ("time_hours", "notice_seconds", "cpus_per_rank", "memory_gib", "max_failures")
    given = {name: value for name in names if (value := getattr(slurm, name)) is not None}
    _check_positive({f"cluster.slurm.{name}": value for name, value in given.items()})
    for name in ("gpus_per_node", "max_requeues"):
        if (count := getattr(slurm, name)) is not None and count < 0:
            raise ConfigError(f"cluster.slurm.{name}={count} must be 0 or more")
    if slurm.notice_seconds >= slurm.time_hours * 3600:
        raise ConfigError(
            f"cluster.slurm.notice_seconds={slurm.notice_seconds} leaves nothing of a job's "
            f"cluster.slurm.time_hours={slurm.time_hours:g} ({slurm.time_hours * 3600:g} seconds) to train in; lower "
            f"it, or raise the limit"
        )
    for setting, options, command in (
        ("options", slurm.options, "sbatch"),
        ("srun_options", slurm.srun_options, "srun"),
    ):
        for option in options:
            if (elsewhere := _SET_ELSEWHERE[command].get(option)) is not None:
                remedy = "remove it: " if elsewhere is _OURS else "set "
                raise ConfigError(
                    f"cluster.slurm.{setting}.{option}={options[option]} would be said to {command} twice; "
                    f"{remedy}{elsewhere}"
                )


def _check_batch(config: RunConfig) -> None:
    stage, cluster, lanes = config.stage, config.cluster, config.order.lanes
    ranks, processes = total_ranks(cluster), processes_per_node(cluster)
    if given_ranks() is not None:
        hardware = _count(ranks, "rank")
    else:
        hardware = f"{_count(cluster.nodes, 'node')} x {_count(processes, 'process', 'processes')}"
    per_pass = ranks * cluster.micro_batch * config.model.seq_len
    if stage.batch_tokens % per_pass:
        raise ConfigError(
            f"stage.batch_tokens={stage.batch_tokens} is not a multiple of {per_pass} ({hardware} x micro-batch "
            f"{cluster.micro_batch} x {config.model.seq_len} tokens); {_nearest(stage.batch_tokens, per_pass)}"
            f"{'' if cluster.micro_batch_is_auto else '; or change cluster.micro_batch'}"
        )
    _check_positive({"order.lanes": lanes, "order.window": config.order.window})
    length = f"order.lanes x {length_setting(config)}"
    _check_multiple("stage.batch_tokens", stage.batch_tokens, length, lanes * config.model.seq_len)


def _check_intervals(config: RunConfig) -> None:
    _check_positive(
        {
            "checkpoint.every_tokens": config.checkpoint.every_tokens,
            "checkpoint.keep": config.checkpoint.keep,
            "validation.every_tokens": config.validation.every_tokens,
            "validation.samples": config.validation.samples,
            "watch.deviations": config.watch.deviations,
            "watch.window_steps": config.watch.window_steps,
            "watch.patience_steps": config.watch.patience_steps,
            "log_every_steps": config.log_every_steps,
            "cluster.timeout_minutes": config.cluster.timeout_minutes,
        }
    )


def _check_corpora(corpora: Mapping[str, CorpusConfig]) -> None:
    for name, corpus in corpora.items():
        if not 0 < corpus.validation_fraction < 1:
            raise ConfigError(
                f"corpora.{name}.validation_fraction={corpus.validation_fraction:g} must lie between 0 and 1"
            )
        if corpus.max_epochs is not None:
            _check_positive({f"corpora.{name}.max_epochs": corpus.max_epochs})


def _check_positive(settings: Mapping[str, float]) -> None:
    for setting, value in settings.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{setting}={value} must be above 0")


def _nearest(value: int, divisor: int) -> str:
    """The good values around `value`, for the end of a message."""
    below, above = value // divisor * divisor, -(-value // divisor) * divisor
    return f"nearest: {above}" if below == 0 else f"nearest: {below} and {above}"


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
