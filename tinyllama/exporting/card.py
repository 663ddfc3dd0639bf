"""The model card: README.md of an exported folder. Pure text from records."""

from collections.abc import Iterable, Sequence

from tinyllama import __version__
from tinyllama.checkpoint.choice import Chosen
from tinyllama.exporting.history import History, Stage
from tinyllama.planning.flops import num_parameters
from tinyllama.units import format_tokens

_FRONT = """---
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tinyllama]
---
"""

_LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")  # the path of this folder
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

`generate` takes the likeliest token each time unless it is told otherwise (`do_sample=True, temperature=0.8`)."""


def model_card(chosen: Chosen, history: History, dtype: str, difference: float, compared: str) -> str:
    """Markdown.

    Args:
        difference: the largest between the logits of the folder and those of the checkpoint.
        compared: on what.
    """
    sections = {
        "": _what(chosen, dtype),
        "How to load it": _LOAD,
        "Stages": _stages(history),
        "Data": _data(history),
        "Evaluation": _evaluation(history),
        "Tokenizer": _tokenizer(chosen),
        "Origin": _origin(chosen, history, difference, compared),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text)
    return f"{_FRONT}\n{body}\n"


def _what(chosen: Chosen, dtype: str) -> str:
    model = chosen.config.model
    rows = [
        ("parameters", f"{num_parameters(model):,}"),
        (
            "layers, hidden size, feed-forward size",
            f"{model.num_layers}, {model.hidden_size}, {model.intermediate_size}",
        ),
        ("heads, key-value heads", f"{model.num_heads}, {model.num_kv_heads}"),
        ("vocabulary", f"{model.vocab_size:,}"),
        ("context", f"{model.seq_len:,} tokens"),
        ("trained on", f"{chosen.tokens:,} tokens"),
        ("stored in", dtype),
    ]
    family, variant = chosen.config.family, chosen.config.variant
    text = f"A language model of the family `{family}`, variant `{variant}`, after stage `{chosen.config.stage.name}`."
    return f"# {family} {variant}, {chosen.name}\n\n{text}\nIts architecture is that of Llama.\n\n" + _table(
        ["", ""], rows
    )


def _stages(history: History) -> str:
    text = "It began with random weights."
    if history.before is not None:
        origin = history.before.removeprefix("hf:")[:12]
        text = (
            f"It began with the weights of a Hugging Face model (digest `{origin}`)."
            if history.before.startswith("hf:")
            else f"The first stage below continues run `{origin}`, of which no record was at hand: what it was trained "
            f"on is not known here."
        )
    rows = [
        (
            stage.name,
            f"`{stage.digest[:12]}`",
            format_tokens(stage.end_tokens - stage.start_tokens),
            f"{stage.start_tokens:,} to {stage.end_tokens:,}",
            format_tokens(stage.plan["batch_tokens"]),
            _learning_rates(stage),
            _weights(stage, "weight_start"),
            _weights(stage, "weight_end"),
        )
        for stage in history.stages
    ]
    titles = ["stage", "run", "tokens", "of its life", "batch", "learning rate", "mixture at its start", "at its end"]
    return f"{text}\n\n{_table(titles, rows)}"


def _learning_rates(stage: Stage) -> str:
    rates = stage.plan["learning_rate"]
    whole = "" if stage.end_tokens == stage.plan["end_tokens"] else f" (at {format_tokens(stage.plan['end_tokens'])})"
    return f"{rates['start']:.3g} to {rates['end']:.3g}{whole}"


def _weights(stage: Stage, which: str) -> str:
    shares = {name: corpus[which] for name, corpus in stage.plan["corpora"].items() if corpus[which]}
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def _data(history: History) -> str:
    if not history.shares:
        return "How often each corpus was read is not known, as not all records of its life were at hand."
    total = sum(share.tokens for share in history.shares.values())
    rows = [
        (name, f"{share.tokens:,}", f"{share.tokens / total:.2%}", f"{share.epochs:.4g}")
        for name, share in history.shares.items()
    ]
    return "As sampled from the root of its life to here:\n\n" + _table(["corpus", "tokens", "share", "epochs"], rows)


def _evaluation(history: History) -> str:
    tasks, corpora = history.evaluation.get("tasks", {}), history.evaluation.get("perplexity", {})
    measured = [
        (name, task["metric"], _number(task["value"]), _number(task["stderr"]), _number(task.get("published")))
        for name, task in tasks.items()
    ]
    losses = [
        (name, f"{found['loss']:.4f}", f"{found['perplexity']:.2f}", f"{found['bits_per_byte']:.4f}")
        for name, found in corpora.items()
    ]
    parts = []
    if measured:
        parts.append(_table(["task", "metric", "value", "standard error", "published"], measured))
    if losses:
        parts.append("On held-out text:\n\n" + _table(["corpus", "loss", "perplexity", "bits per byte"], losses))
    return "\n\n".join(parts)


def _tokenizer(chosen: Chosen) -> str:
    tokenizer = chosen.config.tokenizer
    begin = "began with BOS" if tokenizer.add_bos else "began without BOS"
    end = "ended with EOS" if tokenizer.add_eos else "ended without EOS"
    return (
        f"`tokenizer.model` is the sentencepiece model of training, byte for byte. In training documents {begin} and "
        f"{end}. The tokenizer here does the same at the beginning and adds nothing at the end, so that a prompt is "
        f"continued. What looks like a special token in a text is read as text (`split_special_tokens=False` "
        f"changes that)."
    )


def _origin(chosen: Chosen, history: History, difference: float, compared: str) -> str:
    rows = [
        ("run", f"`{chosen.checkpoint.digest}`"),
        ("checkpoint", f"{chosen.tokens:,} tokens of life, step {chosen.checkpoint.progress.step:,} of its stage"),
        ("weights, sha256", f"`{chosen.checkpoint.files['weights.safetensors']['sha256']}`"),
        ("order of samples, chained", f"`{chosen.checkpoint.order_chain}`"),
        *((f"corpus {name}, fingerprint", f"`{corpus.fingerprint}`") for name, corpus in history.corpora.items()),
        ("written by", f"tinyllama {__version__}"),
    ]
    verify = f"python -m tinyllama.verify run=RUNS/{chosen.config.family}/{chosen.name}"
    return (
        f"{_table(['', ''], rows)}\n\n`{verify}` proves the run from its directory. Before this folder got its name, "
        f"transformers loaded it, and its logits on {compared} differed from those of the checkpoint by at most "
        f"{difference:.2g}, both computed in fp32."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
