"""Trained checkpoints become folders that transformers loads without us."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.conftest import copy_runs, only_run, run_folder
from tests.end_to_end.faults import flip
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.load import from_yaml
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.model.hf import to_hf
from tinyllama.model.llama import build_model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("transformers")]

TEXT = "river of light 山水 😀"
ELSEWHERE = f"""
import json, sys, torch
try:
    import torchvision
except ImportError:
    pass
except RuntimeError:  # a wheel that does not fit torch here
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer({TEXT!r}, return_tensors="pt")
with torch.no_grad():
    torch.save(model(**inputs).logits, sys.argv[2])
assert not [name for name in sys.modules if name.startswith("tinyllama")]
print(json.dumps([inputs.input_ids[0].tolist(), model.generate(**inputs, max_new_tokens=4)[0].tolist()]))
"""


@pytest.fixture
def folder(family_runs) -> RunFolder:
    """The shared family's basic stage, whose state two ranks wrote in parts (ZeRO-3)."""
    return RunFolder(run_folder(family_runs, "basic", "chinese"))


def weights_of(folder: RunFolder, place: int = -1) -> dict[str, torch.Tensor]:
    return load_file(folder.checkpoint(folder.checkpoint_tokens()[place]) / "weights.safetensors")


def test_transformers_alone_has_our_logits_and_our_ids(folder, family_runs, settings, run, tmp_path) -> None:
    declared = [*settings, f"paths.runs={family_runs}", "+variant=chinese", "stage=basic"]
    result = run("export", *declared, f"out={tmp_path / 'out'}", "export.dtype=fp32", "format=json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert sorted(document["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert document["max_logit_difference"] < 1e-5
    assert (document["dtype"], document["tokens"]) == ("fp32", folder.checkpoint_tokens()[-1])
    assert "held-out sequences of 32 tokens" in (tmp_path / "out" / "README.md").read_text()

    script = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "out"), str(tmp_path / "logits.pt")]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids, continued = json.loads(done.stdout)
    config = from_yaml(folder.config)
    assert ids == Tokenizer.load(config.tokenizer).encode(TEXT)
    model = build_model(config.model, "sdpa", torch.device("cpu"))
    model.load_state_dict(weights_of(folder))
    with torch.no_grad():
        ours = model.logits(torch.tensor([ids]))
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), ours, atol=1e-5, rtol=0)
    assert continued[len(ids)] == int(ours[0, -1].argmax()), "the likeliest token comes first, without being asked for"


def test_an_export_in_several_files_holds_what_two_ranks_wrote_in_parts(folder, run, tmp_path) -> None:
    result = run(
        "export", f"run={folder.path}", f"out={tmp_path / 'out'}", "export.dtype=fp32", "export.shard_gib=5e-5"
    )
    assert result.code == 0, result.err
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 1
    found = {key: tensor for path in files for key, tensor in load_file(path).items()}
    wanted = to_hf(weights_of(folder), from_yaml(folder.config).model)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_an_earlier_checkpoint_is_exported_when_it_is_named_and_one_that_is_not_there_is_refused(
    folder, run, tmp_path
) -> None:
    first, *_ = folder.checkpoint_tokens()
    missing = run("export", f"run={folder.path}", f"out={tmp_path / 'out'}", f"at_tokens={first + 1}")
    assert missing.code == 2
    assert f"those at {', '.join(map(str, folder.checkpoint_tokens()))} stand" in missing.err
    result = run("export", f"run={folder.path}", f"out={tmp_path / 'out'}", f"at_tokens={first}")
    assert result.code == 0, result.err
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(exported["model.norm.weight"], weights_of(folder, 0)["norm.weight"].bfloat16())


def test_refusals_are_one_message_and_leave_nothing(family_runs, run, tmp_path) -> None:
    def refused(code: int, words: str, *arguments: str) -> None:
        result = run("export", *arguments)
        assert (result.code, result.err.count("\n")) == (code, 1), result.err
        assert words in result.err
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    copy_runs(family_runs, tmp_path / "runs", [("basic", "chinese")])
    folder, out = RunFolder(only_run(tmp_path / "runs")), f"out={tmp_path / 'out'}"
    refused(2, "out has no value", f"run={folder.path}")
    refused(2, "exists, and nothing is overwritten", f"run={folder.path}", f"out={folder.path}")
    refused(2, "is not the directory of a run", f"run={tmp_path}", out)
    path = folder.checkpoint(folder.checkpoint_tokens()[-1]) / "weights.safetensors"
    flip(path)
    refused(3, f"{path} is damaged", f"run={folder.path}", out)
