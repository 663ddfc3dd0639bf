"""Who takes part in train_step.py and engine.py: the same Llama with the same weights, trained in several ways."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measuring import OPTIMIZER, Step
from tinyllama.config.schema import ClusterConfig, ModelConfig, Precision
from tinyllama.engine.startup import device
from tinyllama.engine.zero import ZeroEngine, computes_in_bf16
from tinyllama.model.attention_choice import choose
from tinyllama.model.float8 import use_float8
from tinyllama.model.hf import hf_config, to_hf
from tinyllama.model.llama import Llama, build_model, parameter_shapes
from tinyllama.world import World


@dataclass(frozen=True)
class Task:
    """What all of them train, and how."""

    model: ModelConfig
    cluster: ClusterConfig
    accumulation: int
    weights: Mapping[str, Tensor]
    """fp32, by our names."""
    world: World = World()

    @property
    def bf16(self) -> bool:
        return computes_in_bf16(self.cluster, device())


class Contestant(NamedTuple):
    build: Callable[[Task], Step]
    obstacle: Callable[[], str | None] = lambda: None
    """Why it cannot take part here; None when it can."""


def random_weights(config: ModelConfig) -> dict[str, Tensor]:
    """On the device, where drawing a billion takes no time."""
    torch.manual_seed(0)
    return {
        name: torch.ones(shape, device=device()) if len(shape) == 1 else 0.02 * torch.randn(shape, device=device())
        for name, shape in parameter_shapes(config).items()
    }


def zero(task: Task) -> Step:
    """Ours, as training has it."""
    engine = ZeroEngine(_llama(task), OPTIMIZER, task.cluster, task.accumulation, task.world)
    return lambda batches: engine.step(batches, OPTIMIZER.learning_rate).losses.mean()


def compiled(task: Task) -> Step:
    """Ours, compiled where the others are not."""
    return zero(replace(task, cluster=replace(task.cluster, compile=True)))


def bare(task: Task) -> Step:
    """Our model in the loop that one would write without an engine."""
    return plain_loop(_llama(task), task, lambda model, tokens: model(tokens).mean())


def transformers(task: Task) -> Step:
    """Hugging Face's LlamaForCausalLM with PyTorch's attention."""
    from tinyllama.model.transformers import library

    library().set_seed(0)
    with device():
        config = library().LlamaConfig(**hf_config(task.model), attn_implementation="sdpa", use_cache=False)
        model = library().LlamaForCausalLM(config)
    model.load_state_dict(to_hf(task.weights, task.model))

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
        return model(input_ids=inputs, labels=targets, shift_labels=targets).loss  # shifted here, once

    return plain_loop(model.train(), task, loss)


def litgpt(task: Task) -> Step:
    """litgpt's GPT with the sizes of Llama, and its own loss."""
    from tinyllama.model.transformers import library

    library()  # litgpt imports torchmetrics, and so torchvision, which does not always fit torch
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    size = task.model
    with device():
        model = GPT(Config(
            block_size=size.seq_len, vocab_size=size.vocab_size, padded_vocab_size=size.vocab_size,
            n_layer=size.num_layers, n_head=size.num_heads, n_query_groups=size.num_kv_heads, n_embd=size.hidden_size,
            intermediate_size=size.intermediate_size, head_size=size.head_size, rotary_percentage=1.0,
            rope_base=int(size.rope_theta), parallel_residual=False, bias=False, norm_class_name="RMSNorm",
            norm_eps=size.norm_eps, mlp_class_name="LLaMAMLP",
        ))  # fmt: skip
    model.load_state_dict(_to_litgpt(task))

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return chunked_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], chunk_size=0)

    return plain_loop(model, task, loss)


CONTESTANTS = {
    "zero": Contestant(zero),
    "bare": Contestant(bare),
    "transformers": Contestant(transformers, lambda: _missing("transformers")),
    "litgpt": Contestant(litgpt, lambda: _missing("litgpt")),
    "compiled": Contestant(compiled),
}
USUAL = ("zero", "bare", "transformers", "litgpt")
"""Those that take part unless others are named."""


def plain_loop(model: nn.Module, task: Task, loss_of: Callable[[nn.Module, Tensor], Tensor]) -> Step:
    """Forward, backward, clip, AdamW; in bf16 by autocast, which keeps the weights in fp32 as well. On several ranks
    by DistributedDataParallel, which brings the gradients together once a step.
    """
    adam = torch.optim.AdamW(
        model.parameters(), lr=OPTIMIZER.learning_rate, betas=(OPTIMIZER.betas[0], OPTIMIZER.betas[1]),
        eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay, fused=True,
    )  # fmt: skip
    if task.cluster.compile:
        model.compile()
    trained: Any = DistributedDataParallel(model) if task.world.size > 1 else model

    def step(batches: Sequence[Tensor]) -> Tensor:
        losses = []
        for index, tokens in enumerate(batches):
            waits = task.world.size > 1 and index + 1 < len(batches)
            with trained.no_sync() if waits else nullcontext():
                with torch.autocast(device().type, torch.bfloat16, enabled=task.bf16):
                    loss = loss_of(trained, tokens)
                (loss / len(batches)).backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return torch.stack(losses).mean()

    return step


def _llama(task: Task) -> Llama:
    cluster = task.cluster
    attention = choose(cluster.attention, task.model, cluster.micro_batch, task.bf16, device())
    model = build_model(task.model, attention, device(), cluster.activation_checkpointing, cluster.loss)
    model.load_state_dict(task.weights)
    if cluster.precision is Precision.fp8:
        use_float8(model)
    return model


def _to_litgpt(task: Task) -> dict[str, Tensor]:
    ends = {"embedding": "transformer.wte", "norm": "transformer.ln_f", "head": "lm_head"}
    inside = {
        "attention_norm": "norm_1", "attention.qkv": "attn.qkv", "attention.out": "attn.proj",
        "feed_forward_norm": "norm_2", "feed_forward.down": "mlp.proj",
    }  # fmt: skip
    theirs = {}
    for name, tensor in task.weights.items():
        name = name.removesuffix(".weight")
        if name in ends:
            theirs[f"{ends[name]}.weight"] = tensor
            continue
        _, layer, part = name.split(".", 2)
        block = f"transformer.h.{layer}"
        if part == "feed_forward.gate_up":
            theirs[f"{block}.mlp.fc_1.weight"], theirs[f"{block}.mlp.fc_2.weight"] = tensor.chunk(2)
        else:
            theirs[f"{block}.{inside[part]}.weight"] = tensor
    return theirs


def _missing(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"the package {package} is not installed"
