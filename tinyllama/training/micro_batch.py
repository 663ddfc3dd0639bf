"""What `cluster.micro_batch=auto` is for a run: as remembered for the device at hand, else as measured now."""

import logging
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

from torch import nn

from tinyllama.checkpoint.agreement import from_main
from tinyllama.checkpoint.files import why_not_written, write_durably
from tinyllama.config.micro_batch import Answer, answer_path, answer_text, divisors, read_answer, share
from tinyllama.config.schema import RunConfig
from tinyllama.data.disk import sync
from tinyllama.engine import heartbeat
from tinyllama.engine.micro_batch import PASSES, Measurement, device_name, measure, sizes_to_try
from tinyllama.engine.zero import ZeroEngine
from tinyllama.errors import DamageError
from tinyllama.model.llama import Llama
from tinyllama.planning.memory import estimate_memory
from tinyllama.units import format_seconds
from tinyllama.world import World

log = logging.getLogger(__name__)


def with_fastest(config: RunConfig, world: World, build_model: Callable[[RunConfig], Llama]) -> RunConfig:
    """The config with the micro-batch that auto stands for; unchanged where a number was given. Collective.

    Raises:
        ConfigError: not even the smallest micro-batch fits.
    """
    if not config.cluster.micro_batch_is_auto:
        return config
    known = from_main(world, lambda: _remembered(config))
    size = known.micro_batch if known else _measured(config, world, build_model)
    return _with(config, size)


def _measured(config: RunConfig, world: World, build_model: Callable[[RunConfig], Llama]) -> int:
    sizes = sizes_to_try(divisors(share(config)), lambda size: estimate_memory(_with(config, size)).total)
    if len(sizes) == 1:
        return sizes[0]

    def build() -> ZeroEngine:
        model = build_model(config)
        for weight in model.parameters():  # what the memory held may be no number, and such steps are skipped
            nn.init.normal_(weight, std=0.02)
        return ZeroEngine(model, config.optimizer, config.cluster, PASSES, world)

    if world.is_main:
        log.info("cluster.micro_batch=auto: trying %s", ", ".join(map(str, sizes)))
    with heartbeat.doing("while measuring micro-batches"):
        found = measure(build, config.model, sizes)
    if world.is_main:
        log.info("%s (measured in %s)", found, format_seconds(found.took_seconds))
        _remember(config, found)
    return found.fastest


def _remembered(config: RunConfig) -> Answer | None:
    path = answer_path(config, device_name())
    try:
        return read_answer(config, path)
    except DamageError as error:
        log.warning("%s; micro-batches are measured anew", error)
        return None


def _remember(config: RunConfig, found: Measurement) -> None:
    """For the runs to come; whole or not at all, also when another run does the same."""
    device = device_name()
    answer = Answer(found.fastest, device, {str(size): seconds for size, seconds in found.seconds.items()})
    path = answer_path(config, device)
    aside = path.with_name(f".{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(aside, answer_text(config, answer))
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        log.warning("the micro-batch is not remembered: %s", why_not_written(error, path.parent))


def _with(config: RunConfig, size: int) -> RunConfig:
    return replace(config, cluster=replace(config.cluster, micro_batch=size))
