"""Real ranks, forked from this process, and a small model to train in them."""

import gc
import os
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyllama.config.schema import ClusterConfig, ModelConfig, OptimizerConfig, Precision
from tinyllama.engine import startup
from tinyllama.engine.supervisor import Supervisor
from tinyllama.engine.zero import StepResult, ZeroEngine
from tinyllama.model.llama import build_model
from tinyllama.world import World

for name in ("comm.mori", "module_inject.auto_ep_layer", "runtime.superoffload.superoffload_stage3"):
    import_module(f"deepspeed.{name}")  # the first engine of each rank would

BATCH, SEQ, VOCAB = 8, 16, 1531
MODEL = ModelConfig(  # odd sizes, so that its parameters do not divide evenly among ranks
    name="test",
    vocab_size=VOCAB,
    hidden_size=70,  # its embeddings and feed-forward matrices are so large that stage 3 cuts them, attention's are not
    intermediate_size=1501,
    num_layers=2,
    num_heads=5,
    num_kv_heads=1,
    seq_len=SEQ,
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)


def cluster(**settings: Any) -> ClusterConfig:
    """A cluster of CPUs: fp32, micro-batches of two, a short patience."""
    common = {"name": "test", "micro_batch": 2, "precision": Precision.fp32, "threads": 1, "timeout_minutes": 1.0}
    return ClusterConfig(**{**common, **settings})


def batch(step: int, samples: int = BATCH) -> torch.Tensor:
    """A global batch of arithmetic sequences, so that there is something to learn; a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(VOCAB, (samples, 1), generator=generator)
    stride = torch.randint(1, 5, (samples, 1), generator=generator)
    return (start + stride * torch.arange(SEQ + 1)) % VOCAB


class Trainer:
    """A rank's engine, fed its share of the global batches."""

    def __init__(
        self, cluster: ClusterConfig, seed: int = 0, optimizer: OptimizerConfig = OPTIMIZER, samples: int = BATCH
    ):
        self.world = startup.initialize(cluster)
        if cluster.shard_within_node:  # two ranks make a node
            self.world = World(self.world.rank, self.world.size, self.world.rank % 2, 2)
        self.micro_batch, self.samples = cluster.micro_batch, samples
        model = build_model(MODEL, "sdpa", startup.device(), cluster.activation_checkpointing, cluster.loss)
        model.initialize(seed)
        self.model = model
        self.accumulation = samples // (cluster.micro_batch * self.world.size)
        self.engine = ZeroEngine(model, optimizer, cluster, self.accumulation, self.world)

    def step(self, step: int, learning_rate: float = 1e-2) -> StepResult:
        rows = batch(step, self.samples).split(self.micro_batch)
        return self.engine.step(rows[self.world.rank :: self.world.size], learning_rate)

    def train(self, first: int, last: int) -> list[tuple[float, float]]:
        """Mean loss over the global batch and gradient norm of the steps first to last - 1."""
        return [(self.mean(result.losses), result.grad_norm) for result in map(self.step, range(first, last))]

    def mean(self, losses: torch.Tensor) -> float:
        total = losses.sum()
        torch.distributed.all_reduce(total)
        return total.item() / self.samples

    def saved(self, folder: Path) -> Path:
        if self.world.is_main:
            folder.mkdir()
        torch.distributed.barrier()
        self.engine.snapshot().write(folder)
        torch.distributed.barrier()
        return folder


@pytest.fixture(autouse=True)
def device_as_marked(request: pytest.FixtureRequest) -> None:
    """Where there are GPUs, ranks use them: the tests marked gpu want that, the others want more ranks than that."""
    wants_gpu = request.node.get_closest_marker("gpu") is not None
    if wants_gpu and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    if torch.cuda.is_available() and not wants_gpu:
        pytest.skip("needs ranks on the CPU: hide the GPUs with CUDA_VISIBLE_DEVICES=")


def call_in_ranks(folder: Path, processes: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """What a function returns in each of so many ranks, which leave it in an empty folder.

    A single rank is forked too: an engine changes for good how its process allocates memory.
    """

    def main() -> None:
        gc.freeze()  # DeepSpeed collects garbage: that would copy every page of the worker's objects
        try:
            result = function(*args, **kwargs)
        finally:
            startup.finalize()
        torch.save(result, folder / os.environ["RANK"])

    assert Supervisor(main, (), processes).outcome() == 0
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(processes)]


@pytest.fixture
def in_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """in_ranks(2, function, ...) calls it in two ranks and returns what each returned."""
    calls = count()

    def run(processes: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        folder = tmp_path / f"call-{next(calls)}"
        folder.mkdir()
        return call_in_ranks(folder, processes, function, *args, **kwargs)

    return run
