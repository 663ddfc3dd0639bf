"""Where a step goes: what torch.profiler recorded -> seconds of each part, on the host and on its device. Pure."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RANGE = "tinyllama/"
"""Begins the names of the ranges that mark the parts of a step; no range lies in another."""
PARTS = ("data_wait", "forward", "backward", "optimizer", "logging", "validation", "checkpoint")
OTHER = "other"
"""What no range covers."""
OPERATORS = 10
"""The most expensive ones, which are told."""

_STEP = "ProfilerStep#"
_LAUNCHES = {"cuda_runtime", "cuda_driver"}
_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}

Event = Mapping[str, Any]
"""One of the trace's `traceEvents`: times in microseconds."""


@dataclass(frozen=True)
class Part:
    """Of a step, in the mean."""

    name: str
    host_seconds: float
    share: float
    """Of the step, by the host's clock."""
    device_seconds: float | None
    """Of the work that was launched meanwhile, whenever the device came to it; None without a GPU."""


@dataclass(frozen=True)
class Operator:
    """A kernel on a GPU, an operator of PyTorch without those that it calls on a CPU; of a step, in the mean."""

    name: str
    calls: float
    seconds: float
    share: float
    """Of the step."""


@dataclass(frozen=True)
class Breakdown:
    steps: int
    seconds: float
    """Of a step, in the mean."""
    device_seconds: float | None
    """In which the GPU computed or copied; None without one."""
    parts: Sequence[Part]
    """Together they are the step."""
    operators: Sequence[Operator]


def break_down(events: Iterable[Event]) -> Breakdown:
    """What a trace of whole steps tells, each of them between two calls of the profiler's `step`."""
    events = [event for event in events if event.get("ph") == "X"]
    marks = [event for event in events if event.get("cat") == "user_annotation"]
    steps = [mark for mark in marks if mark["name"].startswith(_STEP)]
    assert steps, "the trace holds no whole step"
    seconds = _seconds(steps) / len(steps)
    begin = min(step["ts"] for step in steps)
    end = max(step["ts"] + step["dur"] for step in steps)
    ranges = [mark for mark in marks if mark["name"].startswith(RANGE) and begin <= mark["ts"] < end]
    work = [event for event in events if event.get("cat") in _ON_DEVICE]
    busy = _covered(work, begin, end) / len(steps) if work else None
    operators = Counter(_self_times(event for event in events if event.get("cat") == "cpu_op" and event["ts"] < end))
    calls = Counter(event["name"] for event in events if event.get("cat") == "cpu_op" and event["ts"] < end)
    if work:
        operators, calls = Counter(), Counter(event["name"] for event in work)
        for event in work:
            operators[event["name"]] += event["dur"] * 1e-6
    return Breakdown(
        len(steps),
        seconds,
        busy,
        _parts(ranges, _device_seconds(work, events, ranges), seconds, len(steps)),
        [
            Operator(name, calls[name] / len(steps), spent / len(steps), spent / len(steps) / seconds)
            for name, spent in operators.most_common(OPERATORS)
        ],
    )


def _parts(ranges: Sequence[Event], on_device: Mapping[str, float] | None, seconds: float, steps: int) -> list[Part]:
    on_host = {name: _seconds(mark for mark in ranges if mark["name"] == RANGE + name) / steps for name in PARTS}
    on_host[OTHER] = seconds - sum(on_host.values())
    return [
        Part(name, spent, spent / seconds, None if on_device is None else on_device.get(name, 0.0) / steps)
        for name, spent in on_host.items()
    ]


def _device_seconds(work: Sequence[Event], events: Iterable[Event], ranges: Iterable[Event]) -> dict[str, float] | None:
    """The device's work by the part in which the host launched it, from whichever thread: PyTorch runs the backward
    pass in one of its own, while the thread that asked for it waits.
    """
    if not work:
        return None
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    in_order = sorted(ranges, key=lambda mark: mark["ts"])
    begins = [mark["ts"] for mark in in_order]
    found: dict[str, float] = defaultdict(float)
    for event in work:
        launch = launched.get(event.get("args", {}).get("correlation"))
        before = bisect_right(begins, launch) - 1 if launch is not None else -1
        inside = before >= 0 and launch < begins[before] + in_order[before]["dur"]
        found[in_order[before]["name"].removeprefix(RANGE) if inside else OTHER] += event["dur"] * 1e-6
    return found


def _self_times(operators: Iterable[Event]) -> dict[str, float]:
    """Seconds of each operator without those that it calls, by name."""
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in operators:
        threads[event["pid"], event["tid"]].append(event)
    spent: dict[str, float] = defaultdict(float)
    for thread in threads.values():
        calling: list[Event] = []
        for event in sorted(thread, key=lambda each: (each["ts"], -each["dur"])):
            while calling and calling[-1]["ts"] + calling[-1]["dur"] <= event["ts"]:
                calling.pop()
            if calling:
                spent[calling[-1]["name"]] -= event["dur"] * 1e-6
            spent[event["name"]] += event["dur"] * 1e-6
            calling.append(event)
    return spent


def _covered(work: Iterable[Event], begin: float, end: float) -> float:
    """Seconds between two times in which any of it went on."""
    covered, until = 0.0, begin
    for event in sorted(work, key=lambda each: each["ts"]):
        until = max(until, event["ts"])
        last = min(end, event["ts"] + event["dur"])
        covered += max(0.0, last - until)
        until = max(until, last)
    return covered * 1e-6


def _seconds(events: Iterable[Event]) -> float:
    return sum(event["dur"] for event in events) * 1e-6


def table(breakdown: Breakdown) -> str:
    """For people; a device's column where there is one."""
    on_gpu = breakdown.device_seconds is not None
    lines = [f"{'part':<12}{'host, ms':>12}{'of the step':>13}{'device, ms' if on_gpu else '':>13}".rstrip()]
    for part in breakdown.parts:
        device = "" if part.device_seconds is None else f"{part.device_seconds * 1e3:>13.2f}"
        lines.append(f"{part.name.replace('_', ' '):<12}{part.host_seconds * 1e3:>12.2f}{part.share:>13.1%}{device}")
    busy = f"{breakdown.device_seconds * 1e3:>13.2f}" if breakdown.device_seconds is not None else ""
    lines.append(f"{'step':<12}{breakdown.seconds * 1e3:>12.2f}{1:>13.1%}{busy}")
    lines.append(f"\n{'kernel' if on_gpu else 'operator':<50}{'calls':>8}{'ms':>10}{'of the step':>13}")
    for each in breakdown.operators:
        name = each.name if len(each.name) < 50 else f"{each.name[:46]}..."
        lines.append(f"{name:<50}{each.calls:>8.0f}{each.seconds * 1e3:>10.2f}{each.share:>13.1%}")
    return "\n".join(lines)
