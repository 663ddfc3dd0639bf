"""torch.compile of what a model's training step computes: what is compiled, where that is kept, what if it fails.

DeepSpeed's own way, nn.Module.compile, compiles a module's hooks with it. DeepSpeed's hooks read its count of
micro-batches, so that they would be compiled anew for each, and those of stage 3 break the graph. Here the forward
function alone is compiled; the hooks run around it, and names of parameters stay as they are.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._functorch.config
from torch import Tensor, nn

from tinyllama.config.schema import ClusterConfig
from tinyllama.errors import ConfigError
from tinyllama.model.llama import Llama
from tinyllama.world import World

log = logging.getLogger(__name__)

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Torch's variable for the folder in which it keeps what it has compiled."""


def compiles(cluster: ClusterConfig, device: torch.device) -> bool:
    """What cluster.compile means on a device: null is yes on GPUs, no on CPUs."""
    return device.type == "cuda" if cluster.compile is None else cluster.compile


def compile_model(model: Llama, cluster: ClusterConfig, world: World) -> None:
    """Have `model` compute its training step by compiled graphs, from its first step on.

    Each is one full graph: of the whole model where its weights are at hand; of a block where stage 3 gathers those of
    one after the other, and all blocks share it. Validation and evaluation, whose batches come in many sizes, are never
    compiled. Call it before DeepSpeed wraps the model, whose hooks stay outside.

    The compiler runs in the first step. Its failure is a warning where nobody asked for it (cluster.compile=null), and
    the model goes on uncompiled; otherwise that step raises ConfigError.
    """
    _keep_on_disk()
    _forget_threads()
    # What earlier models of this process compiled counts towards the number of times that code is compiled at most.
    torch.compiler.reset()
    torch._functorch.config.force_non_lazy_backward_lowering = True  # or the backward pass would fail later
    compiler = _Compiler(asked=bool(cluster.compile), tells=world.local_rank == 0)
    for part in model.blocks if cluster.zero_stage == 3 else [model]:
        part.forward = compiler.compiled(part)


class _Compiler:
    """Of one model: once it has failed, all parts compute without it."""

    def __init__(self, asked: bool, tells: bool):
        self._asked, self._tells = asked, tells
        self._has_failed = False

    def compiled(self, module: nn.Module) -> Callable[..., Tensor]:
        plain = module.forward
        fast = torch.compile(plain, fullgraph=True, dynamic=False)

        def forward(*inputs: Tensor) -> Tensor:
            if self._has_failed or not torch.is_grad_enabled():
                return plain(*inputs)
            try:
                return fast(*inputs)
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                self._give_up(error)
                return plain(*inputs)

        return forward

    def _give_up(self, error: Exception) -> None:
        cause = getattr(error, "inner_exception", error)
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause
        why = _in_a_line(cause)
        if self._asked:
            raise ConfigError(f"cluster.compile=true: torch.compile fails: {why}; set cluster.compile=false") from error
        self._has_failed = True
        if self._tells:
            log.warning("torch.compile fails, and the run goes on without, more slowly: %s", why)


def _keep_on_disk() -> None:
    """In the user's cache folder: torch's own place is the machine's folder of temporary files.

    Ranks and runs may share it: files get their names when they are whole.
    """
    if CACHE in os.environ:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "tinyllama" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("what torch.compile makes is not kept for the next run: %s", error)
        return
    os.environ[CACHE] = str(folder)


def _forget_threads() -> None:
    """Of the compiler's pool: where the process that started them has forked, this one waits for them for ever."""
    loaded = sys.modules.get("torch._inductor.async_compile")
    if loaded is not None:
        loaded.AsyncCompile.pool.cache_clear()


def _in_a_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:300] + "..."
