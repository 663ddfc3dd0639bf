"""The folder: whole or not there, what is in it, and that a wrong one is noticed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinyllama.config.schema import ExportConfig
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.errors import ConfigError
from tinyllama.exporting import comparison, weights
from tinyllama.exporting.folder import export
from tinyllama.exporting.out import require_free
from tinyllama.model.transformers import load_hf


def test_transformers_loads_the_folder_and_has_the_same_ids(chosen, tmp_path) -> None:
    exported = export(chosen, ExportConfig(), tmp_path / "out")
    assert exported.files == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    model, tokenizer = load_hf(tmp_path / "out", torch.bfloat16)
    generation = model.generation_config
    assert (generation.do_sample, generation.eos_token_id, generation.bos_token_id) == (False, 2, 1)
    ours = Tokenizer.load(chosen.config.tokenizer)
    for text in comparison.DIFFICULT:
        assert tokenizer(text).input_ids == ours.encode(text)
        assert tokenizer.decode(tokenizer(text).input_ids) == ours.decode(ours.encode(text))


def test_converters_find_what_they_look_for(chosen, tmp_path) -> None:
    """llama.cpp's convert_hf_to_gguf.py: the class, sizes, sentencepiece's model, whose vocabulary it fills up to that
    of the configuration, and tensors by their usual names.
    """
    export(chosen, ExportConfig(), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    assert [config[size] for size in sizes] == [3, 32, 48, 4, 2]
    assert {"rms_norm_eps", "rope_theta", "max_position_embeddings"} < config.keys()
    model = (tmp_path / "out" / "tokenizer.model").read_bytes()
    assert model == Path(chosen.config.tokenizer.path).read_bytes()
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    rows = {len(tensors[name]) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    assert rows == {config["vocab_size"]} == {384}
    assert Tokenizer(chosen.config.tokenizer, model).vocab_size == 320
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert None not in settings.values(), "a converter takes null for false"
    assert (settings["add_bos_token"], settings["add_eos_token"]) == (False, False)


def test_documents_that_began_with_bos_in_training_begin_with_it_here(lay, tmp_path) -> None:
    export(lay("stage=basic", "tokenizer.add_bos=true")[-1], ExportConfig(), tmp_path / "out")
    _, tokenizer = load_hf(tmp_path / "out", torch.bfloat16)
    assert tokenizer("the river").input_ids[0] == 1
    assert tokenizer("the river").input_ids[-1] != 2, "a prompt is to be continued"


@pytest.mark.parametrize("one, other", [("gate_proj", "up_proj"), ("layers.0.mlp", "layers.1.mlp")])
def test_a_fault_in_the_mapping_of_names_is_noticed_and_no_folder_appears(
    chosen, tmp_path, monkeypatch, one: str, other: str
) -> None:
    def confused(*arguments):
        found = dict(converted(*arguments))
        for name in found:
            yield name, found[name.replace(one, "*").replace(other, one).replace("*", other)]

    converted = weights._converted
    monkeypatch.setattr(weights, "_converted", confused)
    with pytest.raises(RuntimeError, match="is not the one that was trained: its logits differ by up to"):
        export(chosen, ExportConfig(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_nothing_is_left_of_an_export_that_is_interrupted(chosen, tmp_path, monkeypatch) -> None:
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinyllama.exporting.folder.compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(chosen, ExportConfig(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_what_a_killed_export_left_is_no_obstacle(chosen, tmp_path) -> None:
    left = tmp_path / ".out.writing"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    export(chosen, ExportConfig(), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_a_folder_that_holds_something_is_never_written_into(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert require_free(str(tmp_path / "empty")) == tmp_path / "empty"
    with pytest.raises(ConfigError, match=r"out=.* exists, and nothing is overwritten"):
        require_free(str(tmp_path))
    with pytest.raises(ConfigError, match=r"out has no value"):
        require_free(None)


def test_a_place_that_cannot_be_written_is_named(chosen, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out=.*/file/out cannot be written: Not a directory"):
        export(chosen, ExportConfig(), tmp_path / "file" / "out")


def test_a_tokenizer_that_is_gone_is_named(chosen, tmp_path) -> None:
    elsewhere = replace(chosen.config, tokenizer=replace(chosen.config.tokenizer, path=str(tmp_path / "gone.model")))
    with pytest.raises(ConfigError, match=r"gone.model is missing; set tokenizer.path"):
        export(replace(chosen, config=elsewhere, settings=elsewhere), ExportConfig(), tmp_path / "out")
