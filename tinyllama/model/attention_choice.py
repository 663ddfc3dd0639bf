"""cluster.attention=auto: the kernels that can run, timed at the model's own sizes, and what is said of the fastest."""

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from tinyllama.config.schema import ModelConfig
from tinyllama.model.attention import ATTENTIONS, AUTO, Attention, available, check

log = logging.getLogger(__name__)

REFERENCE = "sdpa"
"""Runs everywhere; the others are held against it."""

TOLERANCE = 0.02
"""Norm of the difference between two kernels in bf16 over the norm, of output and gradients: each is within 0.01 of
fp32."""

WORTHWHILE = 0.97
"""Of the reference's time: who takes more is not taken, so that noise does not change the kernel of a resumed run."""

_WARM_UP, _REPEATS = 3, 10


class Shape(NamedTuple):
    """Of what a block's attention is given."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_size: int

    @classmethod
    def of(cls, model: ModelConfig, micro_batch: int) -> "Shape":
        return cls(micro_batch, model.seq_len, model.num_heads, model.num_kv_heads, model.head_size)

    def __str__(self) -> str:
        return f"{self.batch} x {self.length} x {self.heads}/{self.kv_heads} heads of {self.head_size}"


class Trial(NamedTuple):
    """What one kernel came to."""

    seconds: float | None
    """Of a forward and backward pass, in the middle of several; None where it did not run, or not rightly."""
    remark: str = ""
    """Why it did not."""
    is_wrong: bool = False
    """That it ran, and gave something else."""


_chosen: dict[tuple[Shape, bool, torch.device], str] = {}
"""What this process has measured."""


def choose(name: str, model: ModelConfig, micro_batch: int, bf16: bool, device: torch.device) -> str:
    """The kernel that cluster.attention=`name` means: itself, or for auto the fastest on this device.

    Collective where there is a process group: its first rank measures, and the others take the same.

    Raises:
        ConfigError: there is no such kernel, or it cannot run on `device` in this precision.
    """
    if name != AUTO:
        check(name, device, bf16)
        return name
    if device.type != "cuda":
        return REFERENCE
    shape = Shape.of(model, micro_batch)
    key = (shape, bf16, device)
    if key not in _chosen:
        _chosen[key] = _agreed(shape, bf16, device)
    return _chosen[key]


def _agreed(shape: Shape, bf16: bool, device: torch.device) -> str:
    together = torch.distributed.is_initialized()
    if not together:
        return _measured(shape, bf16, device)
    answer = [_measured(shape, bf16, device) if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(answer, src=0, device=device)
    assert answer[0] is not None
    return answer[0]


def _measured(shape: Shape, bf16: bool, device: torch.device) -> str:
    obstacles = {name: available(name, device, bf16) for name in ATTENTIONS}
    able = {name: ATTENTIONS[name].run for name, obstacle in obstacles.items() if obstacle is None}
    trials = {name: Trial(None, obstacle) for name, obstacle in obstacles.items() if obstacle is not None}
    if len(able) > 1:
        trials |= compare(able, shape, torch.bfloat16 if bf16 else torch.float32, device)
        torch.cuda.empty_cache()
    best = fastest(trials)
    for name, trial in trials.items():
        if trial.is_wrong:
            log.warning("cluster.attention=%s is not taken: %s", name, trial.remark)
    log.info("attention by %s", told(best, trials, f"{shape} in {'bf16' if bf16 else 'fp32'}"))
    return best


def fastest(trials: Mapping[str, Trial]) -> str:
    """Of those that ran rightly; the reference where no other is clearly faster."""
    seconds = {name: trial.seconds for name, trial in trials.items() if trial.seconds is not None}
    if REFERENCE in seconds:
        seconds[REFERENCE] *= WORTHWHILE
    return min(seconds, key=seconds.__getitem__, default=REFERENCE)


def told(best: str, trials: Mapping[str, Trial], sizes: str) -> str:
    """One line: what was taken, how it compares with the others, and why some could not run."""
    ours = trials[best].seconds if best in trials else None
    ran = sorted((trial.seconds, name) for name, trial in trials.items() if trial.seconds is not None and name != best)
    remarks = [f"{seconds / ours:.2f} times as fast as {name}" for seconds, name in reversed(ran) if ours is not None]
    remarks += [f"{name}: {trial.remark}" for name, trial in trials.items() if trial.seconds is None]
    return f"{best} ({sizes}): {'; '.join(remarks)}"


# ---------------------------------------------------------------- measuring


def compare(
    kernels: Mapping[str, Attention], shape: Shape, dtype: torch.dtype, device: torch.device
) -> dict[str, Trial]:
    """Each kernel's time of a forward and backward pass on `device`; what cannot do it, or errs, has none.

    Their results are held against those of the reference, which must be among them; if it fails, nobody else is tried.
    Random numbers are left as they were.
    """
    *inputs, gradient = _inputs(shape, dtype, device)
    passes = {name: _Pass(kernel, inputs, gradient) for name, kernel in kernels.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on kernels that it is told not to take
        trials = {REFERENCE: _tried(passes[REFERENCE], device)}
        if trials[REFERENCE].seconds is None:
            return trials
        expected = passes[REFERENCE]()
        return trials | {name: _tried(one, device, expected) for name, one in passes.items() if name != REFERENCE}


def _tried(one: "_Pass", device: torch.device, expected: Sequence[Tensor] = ()) -> Trial:
    try:
        wrong = _difference(one(), expected) if expected else None
        return Trial(None, wrong, is_wrong=True) if wrong else Trial(one.seconds(device))
    except Exception as error:  # of any kind: they come from compilers, drivers and other people's packages
        return Trial(None, f"it failed: {_in_a_line(error)}")


class _Pass:
    """One kernel on given inputs, forward and backward."""

    def __init__(self, kernel: Attention, inputs: Sequence[Tensor], gradient: Tensor):
        self._kernel, self._inputs, self._gradient = kernel, inputs, gradient

    def __call__(self) -> list[Tensor]:
        """Output, and the gradients of the three inputs."""
        mixed = self._kernel(*self._inputs)
        return [mixed.detach(), *torch.autograd.grad(mixed, self._inputs, self._gradient)]

    def seconds(self, device: torch.device) -> float:
        for _ in range(_WARM_UP):
            self()
        return median(self._once(device) for _ in range(_REPEATS))

    def _once(self, device: torch.device) -> float:
        if device.type != "cuda":
            start = time.perf_counter()
            self()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        self()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def _inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Queries, keys and values cut from what holds them side by side, as a block cuts them, and a gradient."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(heads: int) -> Tensor:
        size = (shape.batch, shape.length, heads, shape.head_size)
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    heads, kv_heads = shape.heads, shape.kv_heads
    queries, keys = drawn(heads + kv_heads).split((heads, kv_heads), dim=2)
    _, values = drawn(heads + 2 * kv_heads).split((heads + kv_heads, kv_heads), dim=2)
    return [*(x.requires_grad_() for x in (queries, keys, values)), drawn(heads)]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """What is too far off, and how far; None where nothing is."""
    names = ("output", "queries' gradient", "keys' gradient", "values' gradient")
    for name, ours, theirs in zip(names, found, expected, strict=True):
        error = ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()
        if not error < TOLERANCE:  # nor is it a number
            return f"its {name} is {error:.1%} from that of {REFERENCE}"
    return None


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:100] + "..."
