"""The plan of a family: tables that fit a terminal of 100 columns, or one JSON document."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyllama.checkpoint.layout import RunFolder, Status
from tinyllama.config.checks import processes_per_node
from tinyllama.planning.cost import Throughput, Totals, sum_up
from tinyllama.planning.document import plan_document
from tinyllama.planning.flops import num_parameters
from tinyllama.planning.lints import Lint
from tinyllama.planning.tree import Node
from tinyllama.reporting.console import console, print_table, table
from tinyllama.reporting.family import indented_name
from tinyllama.slurm.client import QueuedJob
from tinyllama.units import format_tokens

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_STATES = {"PENDING": "queued", "CONFIGURING": "starting", "COMPLETING": "ending"}
"""SLURM's states whose own names say little."""


@dataclass(frozen=True)
class FamilyPlan:
    """A tree and all that is said of it."""

    nodes: Sequence[Node]
    documents: Sequence[Mapping[str, Any]]
    """Of every node (planning/document.py)."""
    totals: Totals
    lints: Sequence[Lint]
    beside: Sequence[Mapping[str, Any]]
    """Runs on disk under the labels of these nodes with another meaning: stage, variants, digest, run_dir, tokens."""

    @property
    def family(self) -> str:
        return self.nodes[0].plan.family


def survey(
    nodes: Sequence[Node],
    rates: Mapping[str, Throughput],
    lints: Sequence[Lint] = (),
    beside: Sequence[Mapping[str, Any]] = (),
    jobs: Mapping[str, QueuedJob] | None = None,
) -> FamilyPlan:
    """The plan of a tree as it stands on disk.

    Args:
        rates: the throughputs of its nodes, by digest.
        jobs: those of its nodes that SLURM has, by digest.
    """
    folders = {node.plan.digest: RunFolder.of(node.config.paths.runs, node.plan) for node in nodes}
    documents = [
        plan_document(node.plan, node.config, node.variants, folder.status.value, str(folder.path), rate)
        | {"job": _job(job)}
        for node in nodes
        for digest in [node.plan.digest]
        for folder, rate, job in [(folders[digest], rates[digest], (jobs or {}).get(digest))]
    ]
    trained = {node.plan.digest: _trained(node, folders[node.plan.digest]) for node in nodes}
    return FamilyPlan(nodes, documents, sum_up(nodes, rates, trained), lints, beside)


def print_plan_json(plan: FamilyPlan) -> None:
    """The one document on standard output."""
    document = {
        "family": plan.family,
        "nodes": plan.documents,
        "totals": asdict(plan.totals),
        "lints": [asdict(lint) for lint in plan.lints],
        "beside": plan.beside,
    }
    print(json.dumps(document))


def print_plan(plan: FamilyPlan) -> None:
    """What is trained, on which data, on which machines, for how much; then what is remarkable about it."""
    out = console(sys.stdout)
    out.print(f"[bold]Family {escape(plan.family)}[/]: {_model(plan.nodes[0])}\n")
    for rows in (_runs(plan), _corpora(plan), _machines(plan)):
        print_table(out, rows)
        out.print("")
    for sentence in _in_words(plan):
        out.print(sentence, markup=False)
    _print_beside(out, plan)
    _print_lints(out, plan.lints)


def _trained(node: Node, folder: RunFolder) -> int:
    """Tokens of the stage that need not be trained again."""
    if folder.status is Status.done:
        return node.plan.tokens
    return max((tokens - node.plan.start_tokens for tokens in folder.checkpoint_tokens()), default=0)


def _job(job: QueuedJob | None) -> dict[str, str] | None:
    return None if job is None else {"id": job.id, "state": job.state, "reason": job.reason}


def _status(document: Mapping[str, Any]) -> str:
    """Of a node: as SLURM sees it, as long as it does."""
    job = document["job"]
    return f"{_STATES.get(job['state'], job['state'].lower())} (job {job['id']})" if job else document["status"]


def _model(node: Node) -> str:
    model, parameters = node.config.model, num_parameters(node.config.model)
    size = _gigabytes(12 * parameters)
    return f"{escape(model.name)}, {format_tokens(parameters)} parameters, {size} a checkpoint"


def _runs(plan: FamilyPlan) -> Table:
    rows = table("run", "variants", "status", right=("tokens", "until", "steps", "batch", "learning rate"))
    differ = len({node.plan.seq_len for node in plan.nodes}) > 1
    if differ:
        rows.add_column("context", justify="right")
    for node, document in zip(plan.nodes, plan.documents, strict=True):
        rows.add_row(
            indented_name(node),
            " ".join(node.variants),
            _status(document),
            format_tokens(document["tokens"]),
            format_tokens(document["end_tokens"]),
            f"{document['steps']:,}",
            format_tokens(document["batch_tokens"]),
            f"{_rate(document['learning_rate']['start'])} → {_rate(document['learning_rate']['end'])}",
            *([f"{document['seq_len']:,}"] if differ else []),
        )
    return rows


def _corpora(plan: FamilyPlan) -> Table:
    rows = table("run", "corpus", right=("weight", "ramp", "samples", "tokens", "epochs from the root"))
    for node, document in zip(plan.nodes, plan.documents, strict=True):
        for index, (name, row) in enumerate(document["corpora"].items()):
            start, end = f"{row['weight_start']:.3g}", f"{row['weight_end']:.3g}"
            rows.add_row(
                indented_name(node) if index == 0 else "",
                name,
                end if start == end else f"{start} → {end}",
                format_tokens(document["ramp_tokens"]) if start != end else "",
                f"{row['samples']:,}",
                format_tokens(row["tokens"]),
                f"{row['epochs_before']:.2f} → {row['epochs_after']:.2f}",
            )
    return rows


def _machines(plan: FamilyPlan) -> Table:
    rows = table("run", "cluster", right=("ranks", "GiB a rank", "tokens/s a rank", "GPU-hours", "days"))
    priced = any(document["time"]["cost"] is not None for document in plan.documents)
    if priced:
        rows.add_column("cost", justify="right")
    for node, document in zip(plan.nodes, plan.documents, strict=True):
        cluster, memory, time = node.config.cluster, document["memory"], document["time"]
        available = "" if memory["gib_available"] is None else f" of {memory['gib_available']:.3g}"
        rows.add_row(
            indented_name(node),
            cluster.name,
            f"{cluster.nodes * processes_per_node(cluster):,}",
            f"{memory['gib_per_gpu']:.3g}{available}",
            _known(time["tokens_per_second_per_gpu"]),
            _known(time["gpu_hours"]),
            "?" if time["hours"] is None else f"{time['hours'] / 24:.1f}",
            *([_known(time["cost"])] if priced else []),
        )
    return rows


def _in_words(plan: FamilyPlan) -> list[str]:
    """What the tables add up to."""
    totals = plan.totals
    whole = [f"{totals.nodes} {'run' if totals.nodes == 1 else 'runs'} of {format_tokens(totals.tokens)} tokens in all",
             *_amounts(totals.gpu_hours, totals.cost)]  # fmt: skip
    said = [", ".join(whole) + "."]
    if totals.tokens_saved:
        shared = [name for node in plan.nodes if len(node.variants) > 1 for name in [node.plan.name]]
        saved = [f"{format_tokens(totals.tokens_saved)} tokens", *_amounts(totals.gpu_hours_saved, totals.cost_saved)]
        said.append(f"Shared: {', '.join(shared)}; variants trained each by itself would take {', '.join(saved)} more.")
    if any(document["status"] != Status.absent.value for document in plan.documents):
        left = _amounts(totals.gpu_hours_remaining, totals.cost_remaining)
        said += [f"Of that {', '.join(left)} are left to train."] if left else []
    said += _chains(plan)
    sources = dict.fromkeys(document["time"]["source"] for document in plan.documents)
    said += [f"Tokens per second: {source}." for source in sources]
    said += _exchanges(plan)
    chosen = dict.fromkeys(
        f"{each['samples']}, {each['source']}" for each in (document["micro_batch"] for document in plan.documents)
        if each["auto"]
    )  # fmt: skip
    said += [f"Micro-batch auto: {each}." for each in chosen]
    if any(node.plan.provisional for node in plan.nodes):
        said.append("Corpora that are not prepared yet are reckoned with the sizes in conf/.")
    return said


def _exchanges(plan: FamilyPlan) -> list[str]:
    """What ranks send one another."""
    amounts: dict[str, list[str]] = {}
    for node, document in zip(plan.nodes, plan.documents, strict=True):
        sent = document["communication"]
        if sent["gb_per_step"]:
            share = "" if sent["share"] is None else f", {sent['share']:.1%} of its time"
            amount = f"{sent['gb_per_step']:.3g} GB{share} by {sent['layout']}"
            amounts.setdefault(amount, []).append(node.plan.stage)
    return [
        f"Each rank sends in a step of {', '.join(dict.fromkeys(stages))}: {amount}."
        for amount, stages in amounts.items()
    ]


def _chains(plan: FamilyPlan) -> list[str]:
    """What SLURM's time limit means for stages that are longer."""
    chains: dict[float, dict[str, None]] = {}
    for node, document in zip(plan.nodes, plan.documents, strict=True):
        jobs = document["time"]["jobs"]
        if jobs is not None and jobs > 1:
            chains.setdefault(node.config.cluster.slurm.time_hours, {})[f"{jobs} for {node.plan.stage}"] = None
    return [
        f"Jobs in a row under SLURM's limit of {hours:g} hours, each requeued: about {', '.join(told)}."
        for hours, told in chains.items()
    ]


def _amounts(gpu_hours: float | None, cost: float | None) -> list[str]:
    """Those that are known."""
    hours = [] if gpu_hours is None else [f"{_known(gpu_hours)} GPU-hours"]
    return hours + ([] if cost is None else [f"a cost of {_known(cost)}"])


def _print_beside(out: Console, plan: FamilyPlan) -> None:
    if not plan.beside:
        return
    rows = table("stage", "variants", "directory", right=("tokens",))
    for run in plan.beside:
        rows.add_row(run["stage"], " ".join(run["variants"]), run["run_dir"], format_tokens(run["tokens"]))
    out.print("\n[bold]On disk under the same names, with another meaning[/]", rows, sep="\n")


def _print_lints(out: Console, lints: Sequence[Lint]) -> None:
    if not lints:
        return
    rows = table("level", "lint", "setting and what is wrong with it")
    for lint in lints:
        rows.add_row(lint.level, lint.name, escape(lint.message), style=_STYLES[lint.level])
    out.print("", rows, sep="\n")


def _rate(value: float) -> str:
    """9.286e-05 -> "9.29e-5"."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def _known(value: float | None) -> str:
    """Three digits and more, "?" for what is not known."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
