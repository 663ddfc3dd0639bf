"""DeepSpeed ZeRO stages 1 to 3 as step, losses, snapshot and load. The only module that imports deepspeed."""

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.profiler import record_function

from tinyllama.config.schema import ClusterConfig, OptimizerConfig, Precision
from tinyllama.engine import tensorfile
from tinyllama.engine.compilation import compile_model, compiles
from tinyllama.engine.deepspeed_config import deepspeed_config
from tinyllama.engine.snapshot import KINDS, MOMENTS, OPTIMIZER, Snapshot, file_of
from tinyllama.engine.tensorfile import Piece
from tinyllama.errors import DamageError
from tinyllama.model.layers import Block
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
        import deepspeed.runtime.fp16.loss_scaler
        from deepspeed.runtime import compiler

        compiled, compiler.compile = compiler.compile, lambda *args, **kwargs: lambda function: function
        import deepspeed.runtime.zero.muon.muon_optimizer  # every engine does; an optimizer that we do not use

        compiler.compile = compiled
    finally:
        del sys.modules["mlflow"]
        if mlflow is not absent:
            sys.modules["mlflow"] = mlflow
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.runtime.fp16.loss_scaler.log_dist = lambda *args, **kwargs: None  # calls every skipped gradient infinite
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *args, **kwargs: None  # prints, and collects garbage
    return deepspeed


deepspeed = _import_deepspeed()

Judge = Callable[[Tensor, float], bool]
"""(this rank's losses of a step, the gradient norm over all ranks) -> whether the step may change the weights."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step as this rank saw it."""

    losses: Tensor
    """fp32 [accumulation * micro_batch]: of each sequence, in the order fed, without history."""
    grad_norm: float
    """Global, before clipping; infinite when it was not finite."""
    applied: bool
    """False when the gradient was not finite, or the judge said no: no rank changed any weight or moment."""


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


class _Trial:
    """Of one step: asks the judge as soon as DeepSpeed has the gradient norm, and keeps what came out."""

    def __init__(self, losses: list[Tensor], judge: Judge | None):
        self._losses, self._judge = losses, judge
        self._grad_norm: float | None = None
        self._allowed = False

    def is_invalid(self, norm: Tensor | float) -> bool:
        """Whether the step must be skipped; stages 1 and 2 ask once more while they clip."""
        if self._grad_norm is None:
            found = float(norm)  # waits for the device, as DeepSpeed's own check does
            self._grad_norm = found if math.isfinite(found) and found >= 0 else math.inf  # -1 stands for not finite
            judged = self._judge is None or self._judge(torch.cat(self._losses), self._grad_norm)
            self._allowed = judged and math.isfinite(self._grad_norm)
        return not self._allowed

    def result(self, applied: bool) -> StepResult:
        if self._grad_norm is None:  # seen before the norm was reckoned
            self.is_invalid(math.inf)
        assert self._grad_norm is not None and applied is self._allowed, "DeepSpeed did not ask before it stepped"
        return StepResult(torch.cat(self._losses), self._grad_norm, applied)


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
        self._host: dict[tuple[str, str], Tensor] = {}
        """What the last snapshot was copied into, by kind and parameter."""
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
        compiled = compiles(cluster, self.device)
        if self.stage == 3 and (compiled or cluster.activation_checkpointing == "selective"):
            # The weights of a block are gathered together, and its inside is free of hooks.
            deepspeed.utils.set_z3_leaf_modules(model, [Block])
        if compiled:
            compile_model(model, cluster, world)
        self._engine, self._zero, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
        if bf16:  # DeepSpeed makes its masters from weights that it has already rounded
            self._fill_masters(initial)

    def step(self, micro_batches: Sequence[Tensor], learning_rate: float, judge: Judge | None = None) -> StepResult:
        """One optimizer step over exactly `accumulation` micro-batches, each int64 [micro_batch, seq_len + 1].

        `judge` is asked once, on all ranks at the same point, before any weight changes; it must answer alike on all.
        After a no, weights, moments and the optimizer's count of steps are as if the batch had not been seen. A
        gradient that is not finite is never applied, whatever the judge says.
        """
        assert len(micro_batches) == self.accumulation, f"{len(micro_batches)} micro-batches, not {self.accumulation}"
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        losses: list[Tensor] = []
        trial = _Trial(losses, judge)
        with self._tried_by(trial):
            for tokens in micro_batches:
                with record_function("tinyllama/forward"):
                    of_sequences = self._engine(tokens.to(self.device, non_blocking=True))
                losses.append(of_sequences.detach())
                with record_function("tinyllama/backward"):
                    self._engine.backward(of_sequences.mean())
                with record_function("tinyllama/optimizer"):
                    self._engine.step()
        return trial.result(self._engine.was_step_applied())

    @contextmanager
    def _tried_by(self, trial: "_Trial") -> Iterator[None]:
        """DeepSpeed's optimizers ask a function of their module whether a gradient norm is fit to be applied."""
        module: Any = sys.modules[type(self._zero).__module__]
        stock = module.is_invalid_grad_norm
        module.is_invalid_grad_norm = trial.is_invalid
        try:
            yield
        finally:
            module.is_invalid_grad_norm = stock

    @torch.no_grad()
    def losses(self, tokens: Tensor) -> Tensor:
        """Of each sequence, without training on it: int64 [batch, seq_len + 1] -> fp32 [batch]."""
        return self._engine.module(tokens.to(self.device, non_blocking=True))

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Of each next token: int64 [batch, length] -> [batch, length, vocab_size], length at most seq_len."""
        return self._engine.module.logits(tokens.to(self.device, non_blocking=True))

    def snapshot(self) -> Snapshot:
        """This rank's part of the whole state, copied into host memory; training may go on at once.

        The memory is that of the snapshot before, which must have been written.
        """
        pieces = {kind: [self._copied(kind, piece) for piece in self._pieces(kind)] for kind in KINDS}
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return Snapshot(self._shapes, pieces, self._adam_steps() if self.world.is_main else None)

    def load(self, folder: Path, optimizer: bool = True) -> None:
        """Take over what snapshots of any world wrote; without `optimizer`, the weights alone.

        Learning rate, betas, weight decay and clipping remain those of the configuration.

        Raises:
            DamageError: files are missing or of another model.
        """
        if optimizer:
            moments = {kind: tensorfile.read(file_of(folder, kind), self._shapes) for kind in MOMENTS}
            self._fill_moments(moments, _read_steps(folder / OPTIMIZER))
        self._fill_masters(tensorfile.read(file_of(folder, "weights"), self._shapes))

    def close(self) -> None:
        """Let go of the model, whose hooks are removed, and of DeepSpeed's groups of ranks."""
        self._engine.destroy()
        # Now, while their threads are here: in a process that is forked from this one it would wait for ever.
        deepspeed.utils.groups._release_process_group_references()

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

    def _copied(self, kind: str, piece: Piece) -> Piece:
        """The same in host memory, pinned where it comes from a GPU. The memory is kept for the next copy."""
        host = self._host.get((kind, piece.name))
        if host is None:
            host = torch.empty(piece.values.shape, pin_memory=self.device.type == "cuda")
            self._host[kind, piece.name] = host
        return piece._replace(values=host.copy_(piece.values, non_blocking=True))

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
    return cluster.precision in (Precision.bf16, Precision.fp8) or (
        cluster.precision is Precision.auto and device.type == "cuda"
    )


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
