"""Trying micro-batches: real engines on real ranks; memory is short on one of them, or the large are slow."""

import gc
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.engine.conftest import BATCH, MODEL, OPTIMIZER, SEQ, VOCAB, Trainer, batch, cluster
from tinyllama.engine import startup
from tinyllama.engine.micro_batch import PASSES, Measurement, measure, sizes_to_try
from tinyllama.engine.zero import ZeroEngine
from tinyllama.errors import ConfigError, TinyllamaError
from tinyllama.model.llama import Llama, build_model
from tinyllama.world import World

pytestmark = pytest.mark.slow

SIZES = [1, 2, 4, 8]


def builder(layout, prepare: Callable[[Llama], None] = lambda model: None) -> Callable[[], ZeroEngine]:
    world = startup.initialize(layout)

    def build() -> ZeroEngine:
        model = build_model(MODEL, "sdpa", startup.device())
        model.initialize(0)
        prepare(model)
        return ZeroEngine(model, OPTIMIZER, layout, PASSES, world)

    return build


def short_of_memory(rank: int, size: int, backward: bool = False) -> Callable[[Llama], None]:
    """One rank has no memory for so many samples, and says it as torch does."""

    def fail(module: nn.Module, inputs, *_) -> None:
        if torch.distributed.get_rank() == rank and inputs[0].shape[0] >= size:
            raise torch.OutOfMemoryError("out of memory")

    def prepare(model: Llama) -> None:
        if backward:
            model.blocks[0].register_full_backward_hook(lambda module, _, gradients: fail(module, gradients))
        else:
            model.register_forward_pre_hook(fail)

    return prepare


def slow(seconds: Callable[[int], float]) -> Callable[[Llama], None]:
    def wait(module: nn.Module, inputs) -> None:
        time.sleep(seconds(inputs[0].shape[0]))

    return lambda model: model.register_forward_pre_hook(wait) and None


def measured(layout, sizes=SIZES, prepare: Callable[[Llama], None] = lambda model: None) -> Measurement:
    found = measure(builder(layout, prepare), MODEL, sizes)
    assert ranks_answer_each_other()
    return found


def ranks_answer_each_other() -> bool:
    """The ranks still answer each other, in turn."""
    told = torch.tensor(torch.distributed.get_rank(), device=startup.device())
    torch.distributed.all_reduce(told)
    return int(told) == sum(range(torch.distributed.get_world_size()))


@pytest.mark.parametrize(
    "processes, layout",
    [(1, cluster()), (2, cluster()), (2, cluster(zero_stage=2)), (2, cluster(zero_stage=3))],
    ids=lambda value: value if isinstance(value, int) else f"stage {value.zero_stage}",
)
def test_all_ranks_find_the_same(in_ranks, processes, layout):
    found = in_ranks(processes, measured, layout)
    assert all(each.seconds == found[0].seconds for each in found)
    assert list(found[0].seconds) == SIZES[: len(found[0].seconds)] and len(found[0].seconds) >= 3
    assert min(found[0].seconds.values()) > 0 and found[0].refused is None
    assert found[0].fastest in SIZES


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("processes, rank", [(1, 0), (2, 0), (2, 1)])
def test_where_one_rank_lacks_memory_all_stop_growing_and_take_what_fits(in_ranks, processes, rank, backward):
    found = in_ranks(processes, measured, cluster(), prepare=short_of_memory(rank, 4, backward))
    for each in found:
        assert (list(each.seconds), each.refused) == ([1, 2], 4)
        assert str(each).endswith("; 4 does not fit")


def test_a_model_of_which_nothing_fits_is_told_with_ways_out(in_ranks):
    with pytest.raises(ConfigError, match=r"not even micro-batches of 1 fit .* cluster\.zero_stage"):
        in_ranks(2, measured, cluster(), prepare=short_of_memory(1, 1))


def test_a_rank_that_leaves_the_others_amid_what_they_do_together_says_why(in_ranks):
    with pytest.raises(TinyllamaError, match=r"4 samples did not fit into the memory of rank 1.* set cluster\.micro"):
        in_ranks(2, measured, cluster(zero_stage=3), prepare=short_of_memory(1, 4))


def test_growing_ends_after_two_that_are_slower_than_the_best(in_ranks):
    (found,) = in_ranks(1, measured, cluster(), prepare=slow(lambda size: 0.03 * size**2))
    assert (list(found.seconds), found.refused, found.fastest) == ([1, 2, 4], None, 1)
    assert str(found).startswith("micro-batch 1: ") and str(found).endswith("times as fast as 2")


def test_the_fastest_is_by_sample_and_that_of_the_slowest_rank(in_ranks):
    def one_rank_is_slow(size: int) -> float:
        return 0.02 if torch.distributed.get_rank() == 0 else 0.02 * size**2 if size > 4 else 0.02

    found = in_ranks(2, measured, cluster(), prepare=slow(one_rank_is_slow))
    assert {each.fastest for each in found} == {4}


def trained(measuring: bool) -> list[tuple[list[float], float]]:
    """Of an engine built after measuring, or without it: losses and gradient norms."""
    torch.manual_seed(3)
    layout = cluster()
    build = builder(layout)
    before = torch.get_rng_state()
    if measuring:
        measure(build, MODEL, SIZES[:3])
    assert torch.equal(torch.get_rng_state(), before)
    world = World.from_environment()
    model = build_model(MODEL, "sdpa", startup.device())
    model.initialize(0)
    engine = ZeroEngine(model, OPTIMIZER, layout, BATCH // (layout.micro_batch * world.size), world)
    parts = [batch(step).split(layout.micro_batch)[world.rank :: world.size] for step in range(3)]
    return [(result.losses.tolist(), result.grad_norm) for result in (engine.step(part, 1e-2) for part in parts)]


def test_a_run_after_it_is_the_same_bit_for_bit(in_ranks):
    assert in_ranks(2, trained, True) == in_ranks(2, trained, False)


class Asked(list):
    """Micro-batches that note how many the engine has been through when it asks for each."""

    def __init__(self, parts, passed: list[str]):
        super().__init__(parts)
        self.passed, self.at_each = passed, []

    def __iter__(self):
        for part in super().__iter__():
            self.at_each.append(list(self.passed))
            yield part


def asked_for() -> list[list[str]]:
    passed: list[str] = []

    def note(model: Llama) -> None:
        model.register_forward_hook(lambda *_: passed.append("forward"))
        model.embedding.register_full_backward_hook(lambda *_: passed.append("backward"))

    engine = builder(cluster(), note)()
    parts = Asked(torch.randint(VOCAB, (PASSES, 2, SEQ + 1)), passed)
    engine.step(parts, 0.0)
    return parts.at_each


def test_the_engine_asks_for_a_micro_batch_when_it_is_done_with_the_one_before(in_ranks):
    """What the times between rest on."""
    (found,) = in_ranks(1, asked_for)
    assert found == [["forward", "backward"] * done for done in range(PASSES)]


def tried(divisors: list[int], need: Callable[[int], int]) -> list[int]:
    startup.initialize(cluster())
    return sizes_to_try(divisors, need)


@pytest.mark.parametrize(
    "divisors, expected",
    [
        ([1, 2, 4, 8, 16], [1, 2, 4, 8, 16]),
        ([1, 2, 4, 8, 16, 32, 64], [1, 4, 8, 16, 32]),
        ([1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 18, 20, 24, 30, 36], [1, 8, 12, 20, 30]),
        ([1, 31], [1, 31]),
        ([1, 37], [1]),
        ([1], [1]),
    ],
    ids=str,
)
def test_few_are_tried_the_first_and_the_largest(in_ranks, divisors, expected):
    assert in_ranks(1, tried, divisors, lambda size: size) == [expected]


def test_what_does_not_fit_into_main_memory_on_one_rank_is_tried_on_none(in_ranks):
    def need(size: int) -> int:
        return size * 2**60 if torch.distributed.get_rank() == 1 and size > 4 else size

    assert in_ranks(2, tried, [1, 2, 4, 8, 16], need) == [[1, 2, 4], [1, 2, 4]]
    assert in_ranks(1, tried, [1, 2, 4], lambda size: 2**60) == [[1]]


def limited(layout) -> tuple[Measurement, int, list[tuple[float, float]]]:
    """On a GPU of which torch may use 2 GiB; also what it holds afterwards, and that training works then."""
    build = builder(layout)
    total = torch.cuda.mem_get_info()[1]
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(2**31 / total)
    try:
        found = measure(build, MODEL, [1, 16, 16384])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    held = torch.cuda.memory_allocated() - before
    startup.finalize()
    return found, held, Trainer(cluster(micro_batch=BATCH)).train(0, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_refuses_what_its_memory_does_not_hold_and_gives_all_back(in_ranks, compiled):
    ((found, held, steps),) = in_ranks(1, limited, cluster(processes=1, compile=compiled))
    assert (list(found.seconds), found.refused) == ([1, 16], 16384)
    assert found.fastest == 16
    assert held < 2**24
    assert all(loss > 0 for loss, _ in steps)
