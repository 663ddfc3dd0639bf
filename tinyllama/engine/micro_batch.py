"""How fast a model trains by micro-batches of several sizes, and which still fit: by trying, on all ranks together."""

import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from tinyllama.config.schema import ModelConfig
from tinyllama.engine import heartbeat, startup
from tinyllama.engine.zero import ZeroEngine
from tinyllama.errors import ConfigError, TinyllamaError

PASSES = 5
"""Of a trial, which is one optimizer step: the first warms up, the last waits for the optimizer, the others count."""
MARGIN = 0.05
"""Of the memory, which must stay free."""

_MOST_SIZES = 5
"""Each may have to be compiled."""
_CPU_LARGEST = 32
"""From there on CPUs gain nothing."""
_BUDGET_SECONDS = {"cpu": 30.0, "cuda": 300.0}
"""No size is begun that is expected to end later than that."""
_TRIAL_SECONDS, _MOST_TRIALS = 0.3, 5
"""A size whose passes are short is tried again, until so much was timed."""


@dataclass(frozen=True)
class Measurement:
    """What came out, the same on all ranks."""

    seconds: Mapping[int, float]
    """Of a sample, by micro-batch, growing: forward and backward pass on the slowest rank."""
    refused: int | None
    """The first that does not fit; None if none was tried that does not."""
    took_seconds: float

    @property
    def fastest(self) -> int:
        return min(self.seconds, key=self.seconds.__getitem__)

    def __str__(self) -> str:
        """For people: beside its neighbours, where there are such."""
        best, sizes = self.fastest, list(self.seconds)
        at = sizes.index(best)
        around = [*sizes[max(0, at - 1) : at], *sizes[at + 1 : at + 2]]
        ratios = [f"{self.seconds[size] / self.seconds[best]:.2f} times as fast as {size}" for size in around]
        told = f"micro-batch {best}" + (f": {' and '.join(ratios)}" if ratios else "")
        return told + (f"; {self.refused} does not fit" if self.refused is not None else "")


class _NoRoom(Exception):
    """Another rank lacks the memory."""


def sizes_to_try(divisors: Sequence[int], need_bytes: Callable[[int], int]) -> list[int]:
    """Some of the divisors of a rank's share, growing: the first, and of the others the largest that may fit.

    Each of those is about twice the one before, or a half more. `need_bytes` tells by arithmetic what training with
    a micro-batch needs. On GPUs it is doubted, for compiled models need less, and the memory itself decides; on CPUs,
    where whoever takes too much is killed, it is believed.
    """
    on_gpu = startup.device().type == "cuda"
    room = 2 * torch.cuda.mem_get_info()[1] if on_gpu else (1 - MARGIN) * _free_bytes_of_rank()
    able = [size for size in divisors if (on_gpu or size <= _CPU_LARGEST) and need_bytes(size) <= room]
    most = _agreed_least(len(able))
    chosen: list[int] = []
    for size in reversed(divisors[:most]):
        if not chosen or 3 * size <= 2 * chosen[-1]:
            chosen.append(size)
    return sorted({divisors[0], *chosen[: _MOST_SIZES - 1]})


def measure(build: Callable[[], ZeroEngine], model: ModelConfig, sizes: Sequence[int]) -> Measurement:
    """Try micro-batches of these sizes, growing, on random tokens. Collective.

    It ends with the first that does not fit on some rank, after two in a row that are slower than the best before
    them, and when time is up. What it took of memory and of random numbers is given back.

    Args:
        build: makes an engine of PASSES accumulations.

    Raises:
        ConfigError: not even the first fits.
    """
    begun = time.monotonic()
    with _undisturbed():
        seconds, refused = _Trials(build(), model).grow(sizes, begun)
    return Measurement(seconds, refused, time.monotonic() - begun)


def device_name() -> str:
    """What this rank computes on; of CPUs also how many there are."""
    device = startup.device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} x {len(os.sched_getaffinity(0))}"


class _Trials:
    """Of one engine, which is fed micro-batches of any size: the memory of its states does not depend on it."""

    def __init__(self, engine: ZeroEngine, model: ModelConfig):
        self._engine, self._model, self._device = engine, model, engine.device
        self._generator = torch.Generator().manual_seed(0)
        self._peaks: dict[int, int] = {}
        """Bytes that a size took beyond the engine's states, on a GPU."""

    def grow(self, sizes: Sequence[int], begun: float) -> tuple[dict[int, float], int | None]:
        """Seconds of a sample by size, and the size that does not fit."""
        seconds: dict[int, float] = {}
        slower = 0
        try:
            for size in sizes:
                heartbeat.own().say(f"while measuring micro-batch {size}")
                if seconds and self._is_too_late(seconds, size, begun):
                    break
                taken = self._try(size) if self._has_room(size) else None
                if taken is None:
                    if not seconds:
                        raise _nothing_fits(size)
                    return seconds, size
                slower = slower + 1 if seconds and taken > min(seconds.values()) else 0
                seconds[size] = taken
                if slower == 2:
                    break
            return seconds, None
        finally:
            self._engine.close()

    def _is_too_late(self, seconds: Mapping[int, float], size: int, begun: float) -> bool:
        expected = PASSES * size * list(seconds.values())[-1]
        return self._on_any(time.monotonic() - begun + expected > _BUDGET_SECONDS[self._device.type])

    def _has_room(self, size: int) -> bool:
        """Whether all ranks of GPUs are expected to keep their margin; the first size is tried in any case."""
        if self._device.type != "cuda":
            return True
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return not self._on_any(bool(self._peaks) and free - self._expected_peak(size) < MARGIN * total)

    def _expected_peak(self, size: int) -> float:
        """By a line through the last two; in proportion to the only one."""
        *before, (last, peak) = self._peaks.items()
        if not before:
            return peak * size / last
        other, lower = before[-1]
        return peak + max(0.0, (peak - lower) / (last - other)) * (size - last)

    def _try(self, size: int) -> float | None:
        """Seconds of a sample on the slowest rank; None where some rank lacks the memory."""
        torch.compiler.reset()  # else the second size would be compiled for any size
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        times: list[float] = []
        trials = 0
        while trials == 0 or (trials < _MOST_TRIALS and sum(times) < _TRIAL_SECONDS):
            found = self._trial(size)
            if found is None:
                return None
            times, trials = [*times, *found], trials + 1
        if self._device.type == "cuda":
            self._peaks[size] = torch.cuda.max_memory_allocated() - before
        return median(times) / size

    def _trial(self, size: int) -> list[float] | None:
        """Seconds of the passes that count, each on the slowest rank."""
        shape = (PASSES, size, self._model.seq_len + 1)
        tokens = torch.randint(self._model.vocab_size, shape, generator=self._generator)
        passes = _Passes(tokens, self._on_any, self._device)
        lacks_memory = False
        try:
            self._engine.step(passes, learning_rate=0.0)
        except torch.OutOfMemoryError:
            lacks_memory = True  # to be told outside: the error holds on to memory
        except _NoRoom:
            return None
        if lacks_memory and self._engine.world.size > 1 and self._engine.stage > 1:
            raise TinyllamaError(  # in the middle of what all ranks do together: the others cannot be told
                f"cluster.micro_batch=auto: {size} samples did not fit into the memory of rank "
                f"{self._engine.world.rank}, which only showed when it was tried; set cluster.micro_batch to less"
            )
        if self._on_any(lacks_memory):
            return None
        return _on_slowest(passes.seconds(), self._device)

    def _on_any(self, is_so: bool) -> bool:
        """Whether it is so on some rank. Collective."""
        told = torch.tensor(int(is_so), device=self._device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)


class _Passes(Sequence[Tensor]):
    """Micro-batches that note when the engine asks for each, for then it is done with the one before.

    At each the ranks ask each other, too, whether one lacks the memory.
    """

    def __init__(self, tokens: Tensor, on_any: Callable[[bool], bool], device: torch.device):
        self._tokens, self._on_any, self._device = tokens, on_any, device
        self._asked: list[float] = []
        self._given: list[float] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # nobody cuts it
        if index >= len(self):
            raise IndexError
        assert index == len(self._asked), "each pass is asked for once, when its turn has come"
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self._asked.append(time.perf_counter())
        if index and self._on_any(False):
            raise _NoRoom
        self._given.append(time.perf_counter())
        return self._tokens[index]

    def seconds(self) -> list[float]:
        """Of all passes but the first and the last."""
        return [asked - given for given, asked in zip(self._given[1:-1], self._asked[2:], strict=True)]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is taken of memory and random numbers within is given back."""
    devices = [torch.cuda.current_device()] if startup.device().type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.compiler.reset()
        gc.collect()
        if devices:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _on_slowest(seconds: Sequence[float], device: torch.device) -> list[float]:
    told = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.tolist()


def _agreed_least(count: int) -> int:
    told = torch.tensor(count, device=startup.device())
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return int(told)


def _nothing_fits(size: int) -> ConfigError:
    return ConfigError(
        f"cluster.micro_batch=auto: not even micro-batches of {size} fit into the memory; set "
        f"cluster.activation_checkpointing=true or a higher cluster.zero_stage, or choose a smaller model"
    )


def _free_bytes_of_rank() -> float:
    """This rank's part of what its node has to give."""
    return _free_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _free_bytes() -> int:
    """Of main memory, within the limit of the control group."""
    free = [int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable")]  # fmt: skip
    for folder, limit, used in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # there is no such limit
            free.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    return min(free)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
