"""The arithmetic of a trace, and which steps are recorded. Real recordings: tests/end_to_end/test_profile.py."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from tinyllama.training.breakdown import PARTS, break_down, table
from tinyllama.training.profile import MICRO_BATCHES, SKIPPED, STEPS, Window, usual_seconds


def span(name: str, category: str, begin: float, length: float, thread: int = 1, **args: int) -> dict:
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": length, "pid": 1, "tid": thread, "args": args}


def a_step_on_a_gpu() -> list[dict]:
    """The host launches all within 60 us, and waits in the optimizer until the device, which is late, has done it."""
    return [
        span("ProfilerStep#9", "user_annotation", 1000, 1000),
        span("tinyllama/forward", "user_annotation", 1010, 20),
        span("tinyllama/backward", "user_annotation", 1030, 30),
        span("tinyllama/optimizer", "user_annotation", 1060, 840),
        span("cudaLaunchKernel", "cuda_runtime", 1015, 2, correlation=1),
        span("cudaLaunchKernel", "cuda_runtime", 1040, 2, thread=2, correlation=2),  # autograd's own thread
        span("cuLaunchKernel", "cuda_driver", 1070, 2, correlation=3),
        span("cudaMemcpyAsync", "cuda_runtime", 1950, 2, correlation=4),
        span("cudaDeviceSynchronize", "cuda_runtime", 1080, 800),
        span("matrices", "kernel", 1100, 300, thread=7, correlation=1),
        span("matrices", "kernel", 1400, 450, thread=7, correlation=2),
        span("adam", "kernel", 1800, 100, thread=8, correlation=3),  # on another stream: half beside the matrices
        span("copy", "gpu_memcpy", 1960, 10, thread=7, correlation=4),
        span("tinyllama/forward", "gpu_user_annotation", 1100, 300, thread=7),
        {"ph": "i", "name": "an instant", "ts": 1500},
    ]


def test_work_of_a_gpu_belongs_to_the_part_that_launched_it():
    found = break_down(a_step_on_a_gpu())
    assert found.seconds == pytest.approx(1e-3)
    host = {part.name: part.host_seconds * 1e6 for part in found.parts}
    device = {part.name: part.device_seconds * 1e6 for part in found.parts}
    assert host == pytest.approx(
        dict.fromkeys(PARTS, 0) | {"forward": 20, "backward": 30, "optimizer": 840, "other": 110}
    )
    assert device == pytest.approx(
        dict.fromkeys(PARTS, 0) | {"forward": 300, "backward": 450, "optimizer": 100, "other": 10}
    )


def test_a_gpu_is_busy_once_where_two_of_its_streams_are():
    assert break_down(a_step_on_a_gpu()).device_seconds == pytest.approx((1900 - 1100 + 10) * 1e-6)


def test_a_short_kernel_beside_a_long_one_adds_no_time():
    short = span("short", "kernel", 1450, 50, thread=8, correlation=3)
    assert break_down([*a_step_on_a_gpu(), short]).device_seconds == pytest.approx((1900 - 1100 + 10) * 1e-6)


def test_steps_go_as_fast_as_those_in_the_middle_of_what_went_by():
    assert usual_seconds([9.0, 8.0, 7.0, 3.0, 1.0, 2.0, 3.0, 9.0]) == 2.0  # first ones, and one that warms the recorder
    assert usual_seconds([9.0]) is None


def test_kernels_are_told_by_their_time_on_the_gpu():
    found = break_down(a_step_on_a_gpu())
    assert [(each.name, each.calls) for each in found.operators] == [("matrices", 2), ("adam", 1), ("copy", 1)]
    assert found.operators[0].seconds == pytest.approx(750e-6)
    assert found.operators[0].share == pytest.approx(0.75)
    assert "device, ms" in table(found)


def test_an_operator_costs_what_those_that_it_calls_do_not():
    events = [
        span("ProfilerStep#1", "user_annotation", 0, 100),
        span("outer", "cpu_op", 10, 50),
        span("inner", "cpu_op", 10, 20),  # begins with its caller
        span("innermost", "cpu_op", 25, 5),
        span("inner", "cpu_op", 30, 30),  # begins where its sibling ends, ends with its caller
        span("inner", "cpu_op", 15, 40, thread=2),  # at the same time, and called by nobody
    ]
    found = break_down(events)
    assert {each.name: each.seconds * 1e6 for each in found.operators} == pytest.approx(
        {"outer": 0, "inner": 15 + 30 + 40, "innermost": 5}, abs=1e-6
    )
    assert found.device_seconds is None
    assert all(part.device_seconds is None for part in found.parts)
    assert "device" not in table(found)


def test_the_parts_are_means_over_the_steps_that_were_recorded():
    events = []
    for step, begin in enumerate((0, 1000)):
        events.append(span(f"ProfilerStep#{step}", "user_annotation", begin, 400 + 200 * step))
        events += [span("tinyllama/backward", "user_annotation", begin + each, 100) for each in (0, 150)]
    found = break_down([*events, span("tinyllama/backward", "user_annotation", 1700, 50)])  # after the last of them
    assert found.steps == 2
    assert found.seconds == pytest.approx(500e-6)
    parts = {part.name: part for part in found.parts}
    assert parts["backward"].host_seconds == pytest.approx(200e-6)
    assert parts["other"].host_seconds == pytest.approx(300e-6)
    assert sum(part.share for part in found.parts) == pytest.approx(1)


def test_self_times_of_a_real_trace_are_those_of_the_profilers_own_table(tmp_path):
    matrix = torch.randn(64, 64, requires_grad=True)
    with profile(
        activities=[ProfilerActivity.CPU], schedule=schedule(wait=0, warmup=1, active=2, repeat=1)
    ) as profiler:
        for _ in range(3):
            with record_function("tinyllama/forward"):
                loss = torch.nn.functional.linear(matrix, matrix).softmax(-1).sum()
            with record_function("tinyllama/backward"):
                loss.backward()
            profiler.step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    found = break_down(json.loads((tmp_path / "trace.json").read_text())["traceEvents"])
    theirs = {event.key: event.self_cpu_time_total * 1e-6 for event in profiler.key_averages()}
    for each in found.operators:
        assert each.seconds * found.steps == pytest.approx(theirs[each.name], rel=0.02, abs=2e-6), each.name
    parts = {part.name: part.host_seconds for part in found.parts}
    assert parts["forward"] + parts["backward"] + parts["other"] == pytest.approx(found.seconds)


@given(st.integers(1, 10**6), st.integers(1, 4096))
def test_some_steps_are_recorded_in_every_stage_and_as_many_go_by_first_as_it_allows(steps_left, accumulation):
    window = Window.of(steps_left, accumulation)
    assert 1 <= window.recorded <= STEPS
    assert window.recorded == 1 or window.recorded * accumulation <= MICRO_BATCHES
    assert 0 <= window.skipped <= SKIPPED
    assert window.skipped + window.recorded <= steps_left
    if steps_left >= SKIPPED + STEPS:
        assert window.skipped == SKIPPED
