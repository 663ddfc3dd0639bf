"""DeepSpeed ZeRO stages 1 to 3 behind four verbs: step, losses, save, load. The only module that imports deepspeed."""

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from tinyllama.config.schema import ClusterConfig, OptimizerConfig, Precision
from tinyllama.engine import tensorfile
from tinyllama.engine.deepspeed_config import deepspeed_config
from tinyllama.engine.tensorfile import Piece
from tinyllama.errors import DamageError
from tinyllama.model.llama import Llama
from tinyllama.world import World


def _import_deepspeed() -> Any:
    """deepspeed without its side effects: no MLflow and no compiler imported (seconds each), no kernel built for CPUs
    (a minute), no warnings.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for GPUs must not prevent a later fork
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    absent: Any = object()
    mlflow = sys.modules.get("mlflow", absent)
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # its autotuner would import it, and does without
    try:
        for module in (r"deepspeed\.", r"torch\.distributed\."):  # collectives that it calls by their former names
            warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.bf16_optimizer
        from deepspeed.runtime import compiler

        compiled, compiler.compile = compiler.compile, lambda *args, **kwargs: lambda function: function
        import deepspeed.runtime.zero.muon.muon_optimizer  # every engine does; an optimizer that we do not use

        compiler.compile = compiled
    finally:
        del sys.modules["mlflow"]
        if mlflow is not absent:
            sys.modules["mlflow"] = mlflow
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *args, **kwargs: None  # prints, and collects garbage
    return deepspeed


deepspeed = _import_deepspeed()

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StepResult:
    """One optimizer step as this rank saw it."""

    losses: Tensor
    """fp32 [accumulation * micro_batch]: of each sequence, in the order fed, without history."""
    grad_norm: float
    """Global, before clipping; infinite when it was not finite."""
    applied: bool
    """False when the gradient was not finite: no rank changed any weight or moment."""


class Fragment(NamedTuple):
    """What this rank keeps in fp32 of one parameter."""

    master: Tensor
    """Flat, of several parameters; its optimizer state is keyed by it."""
    start: int
    """First element of the parameter's in `master`."""
    offset: int
    """Place of that element in the flattened parameter."""
    length: int

    def of(self, flat: Tensor) -> Tensor:
        """This fragment of `master`, or of a moment that is laid out like it."""
        return flat.detach()[self.start : self.start + self.length]


class ZeroEngine:
    """Trains a Llama whose states are spread over the ranks.

    All ranks build it and call each method together. `startup.initialize` has made the process group before.

    Raises:
        ConfigError: the cluster asks for what ZeRO cannot do here.
    """

    def __init__(
        self, model: Llama, optimizer: OptimizerConfig, cluster: ClusterConfig, accumulation: int, world: World
    ):
        self.accumulation = accumulation
        self.stage = cluster.zero_stage
        self.world = world
        self.device = model.head.weight.device
        bf16 = computes_in_bf16(cluster, self.device)
        config = deepspeed_config(optimizer, cluster, accumulation, world, bf16)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        initial = {name: parameter.detach().flatten() for name, parameter in model.named_parameters()}
        _share_process_group(timedelta(minutes=cluster.timeout_minutes))
        adam = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer.learning_rate,
            betas=(optimizer.betas[0], optimizer.betas[1]),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self._engine, self._zero, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
        if cluster.compile:
            self._engine.compile()
        if bf16:  # DeepSpeed makes its masters from weights that it has already rounded
            self._fill_masters(initial)

    def step(self, micro_batches: Sequence[Tensor], learning_rate: float) -> StepResult:
        """One optimizer step over exactly `accumulation` micro-batches, each int64 [micro_batch, seq_len + 1]."""
        assert len(micro_batches) == self.accumulation, f"{len(micro_batches)} micro-batches, not {self.accumulation}"
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        losses = []
        for tokens in micro_batches:
            of_sequences = self._engine(tokens.to(self.device, non_blocking=True))
            self._engine.backward(of_sequences.mean())
            self._engine.step()
            losses.append(of_sequences.detach())
        grad_norm = float(self._engine.get_global_grad_norm())
        return StepResult(torch.cat(losses), grad_norm, self._engine.was_step_applied())

    @torch.no_grad()
    def losses(self, tokens: Tensor) -> Tensor:
        """Of each sequence, without training on it: int64 [batch, seq_len + 1] -> fp32 [batch]."""
        return self._engine.module(tokens.to(self.device, non_blocking=True))

    def save(self, folder: Path) -> None:
        """Write the whole state into an existing folder, in files that do not depend on world, stage or precision."""
        paths = {kind: folder / f"{kind}.safetensors" for kind in ("weights", *_MOMENTS)}
        if self.world.is_main:
            for path in paths.values():
                tensorfile.create(path, self._shapes)
            (folder / "optimizer.json").write_text(json.dumps({"step": self._adam_steps()}))
        torch.distributed.barrier()
        for kind, path in paths.items():
            tensorfile.write(path, self._shapes, self._pieces(kind))
        torch.distributed.barrier()

    def load(self, folder: Path, optimizer: bool = True) -> None:
        """Take over what `save` wrote on any world; without `optimizer`, the weights alone.

        Learning rate, betas, weight decay and clipping remain those of the configuration.

        Raises:
            DamageError: files are missing or of another model.
        """
        if optimizer:
            moments = {kind: tensorfile.read(folder / f"{kind}.safetensors", self._shapes) for kind in _MOMENTS}
            self._fill_moments(moments, _read_steps(folder / "optimizer.json"))
        self._fill_masters(tensorfile.read(folder / "weights.safetensors", self._shapes))

    def close(self) -> None:
        """Let go of the model: its hooks are removed."""
        self._engine.destroy()

    def _fragments(self) -> Iterator[tuple[str, Fragment]]:
        """What this rank keeps, by parameter; DeepSpeed's layouts are known here and nowhere else."""
        zero = self._zero
        for name, parameter in self._engine.module.named_parameters():
            if self.stage == 3:  # each parameter is cut into equal parts, the last of them padded
                group, start, part = zero.grad_position[zero.get_param_id(parameter)]
                offset = zero._get_param_partition_rank(parameter) * part
                length = max(0, min(part, parameter.ds_numel - offset))
                yield name, Fragment(zero.fp32_partitioned_groups_flat[group], start, offset, length)
            elif parameter._hp_mapping is not None:  # all parameters in a row are cut into equal parts
                there, here = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                yield name, Fragment(zero.param_groups[0]["params"][0], here.start, there.start, here.numel)

    def _adam(self, master: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one flat master: step, exp_avg, exp_avg_sq; empty before the first step."""
        return self._zero.optimizer.state[master]

    def _adam_steps(self) -> int:
        states = [self._adam(fragment.master) for _, fragment in self._fragments()]
        return max((int(state["step"]) for state in states if state), default=0)

    def _pieces(self, kind: str) -> Iterator[Piece]:
        for name, fragment in self._fragments():
            if kind == "weights":
                yield Piece(name, fragment.offset, fragment.of(fragment.master))
            elif kind in self._adam(fragment.master):
                yield Piece(name, fragment.offset, fragment.of(self._adam(fragment.master)[kind]))

    def _fill_moments(self, moments: dict[str, dict[str, Tensor]], steps: int) -> None:
        for name, fragment in self._fragments():
            state = self._adam(fragment.master)
            state["step"] = torch.tensor(float(steps), device=self.device)
            for kind, values in moments.items():
                if kind not in state:
                    state[kind] = torch.zeros_like(fragment.master, requires_grad=False)
                fragment.of(state[kind]).copy_(values[name][fragment.offset :][: fragment.length])

    def _fill_masters(self, weights: dict[str, Tensor]) -> None:
        """Set the fp32 masters from flat tensors by name, and from them the weights that the forward pass reads."""
        zero = self._zero
        if self.stage == 3:
            zero._partition_all_parameters()
        for name, fragment in self._fragments():
            fragment.of(fragment.master).copy_(weights[name][fragment.offset :][: fragment.length])
        if self.stage < 3:
            zero.update_lp_params()
            return
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero._post_step(set())  # gathers the small parameters that are never partitioned, forgets hpZ's copies


def computes_in_bf16(cluster: ClusterConfig, device: torch.device) -> bool:
    """What cluster.precision means on a device: `auto` is bf16 on GPUs, fp32 on CPUs."""
    return cluster.precision is Precision.bf16 or (cluster.precision is Precision.auto and device.type == "cuda")


def _share_process_group(timeout: timedelta) -> None:
    """Have DeepSpeed use the process group there is, and give the time-out to the groups that it derives from it.

    Without it a frozen rank would hang the others for ever. What DeepSpeed remembers of an earlier process group of
    this process is forgotten.
    """

    from deepspeed.comm.torch import TorchBackend

    def new_group(self: Any, ranks: Sequence[int]) -> Any:
        return torch.distributed.new_group(ranks, timeout=timeout)

    TorchBackend.new_group = new_group
    deepspeed.utils.groups._release_process_group_references()
    deepspeed.init_distributed(
        dist_backend=torch.distributed.get_backend(), verbose=False, auto_mpi_discovery=False, timeout=timeout
    )


def _read_steps(path: Path) -> int:
    try:
        return int(json.loads(path.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} does not tell how many steps the optimizer has taken: {error}") from error
