"""The model card: what it says follows from the records, and what they lack it says too."""

import json
import shutil

from tinyllama.exporting.card import model_card
from tinyllama.exporting.history import read_history


def card(chosen) -> str:
    return model_card(chosen, read_history(chosen), "bf16", 1e-7, "4 sequences")


def rows(text: str, title: str) -> list[list[str]]:
    """Of the first table below a title, without its head."""
    lines = text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_it_tells_the_stages_from_the_root_with_their_mixtures_and_rates(lay) -> None:
    basic, continual, cooldown = lay("stage=cooldown")
    told = rows(card(cooldown), "Stages")
    assert [row[:2] for row in told] == [
        [each.config.stage.name, f"`{each.checkpoint.digest[:12]}`"] for each in (basic, continual, cooldown)
    ]
    assert [row[3] for row in told] == [
        f"{start:,} to {end:,}" for start, end in ((0, basic.tokens), (basic.tokens, continual.tokens),
                                                   (continual.tokens, cooldown.tokens))
    ]  # fmt: skip
    assert told[1][-2:] == ["slimpajama 100.0%", "slimpajama 50.0%, skypile 50.0%"]
    assert told[0][5].startswith("0 to ")


def test_tokens_of_the_corpora_add_up_to_the_tokens_of_life(lay) -> None:
    *_, cooldown = lay("stage=cooldown")
    told = {row[0]: int(row[1].replace(",", "")) for row in rows(card(cooldown), "Data")}
    assert sum(told.values()) == cooldown.tokens
    stages = read_history(cooldown).stages
    assert told["skypile"] == sum(stage.plan["corpora"].get("skypile", {}).get("tokens", 0) for stage in stages)


def test_what_is_not_known_for_want_of_ancestors_is_said(lay) -> None:
    basic, continual, cooldown = lay("stage=cooldown")
    shutil.rmtree(basic.folder.path)
    text = card(cooldown)
    assert [row[0] for row in rows(text, "Stages")] == ["continual", "cooldown"]
    assert f"continues run `{basic.checkpoint.digest[:12]}`, of which no record was at hand" in text
    assert "How often each corpus was read is not known" in text


def test_it_has_the_evaluation_of_this_checkpoint_where_there_is_one(lay) -> None:
    (basic,) = lay("stage=basic")
    assert "## Evaluation" not in card(basic)
    path = basic.folder.evaluation(basic.tokens)
    path.parent.mkdir()
    tasks = {"piqa": {"metric": "acc_norm", "value": 73.557, "stderr": 1.03, "published": 73.56, "samples": 1838}}
    perplexity = {"skypile": {"loss": 2.5, "perplexity": 12.18, "bits_per_byte": 0.91, "tokens": 10, "bytes": 30}}
    path.write_text(json.dumps({"tasks": tasks, "perplexity": perplexity}))
    text = card(basic)
    assert rows(text, "Evaluation")[0] == ["piqa", "acc_norm", "73.56", "1.03", "73.56"]
    assert "| skypile | 2.5000 | 12.18 | 0.9100 |" in text


def test_digests_lead_back_to_the_run(lay) -> None:
    (basic,) = lay("stage=basic")
    text = card(basic)
    weights = basic.checkpoint.files["weights.safetensors"]["sha256"]
    for digest in (basic.checkpoint.digest, weights, basic.checkpoint.order_chain):
        assert f"`{digest}`" in text
    assert f"run=RUNS/demo/{basic.name}" in text
    assert text.startswith("---\nlibrary_name: transformers\n")
