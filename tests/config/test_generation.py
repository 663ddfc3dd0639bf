"""What is asked of `generate`: settings that make no sense, and prompts as they were typed."""

import pytest
from hydra import compose, initialize_config_dir

from tinyllama.config.location import conf_folder
from tinyllama.generate import _quoted


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["generation.max_tokens=0"], ["generation.max_tokens=0", "above 0"]),
        (["generation.temperature=-1"], ["generation.temperature=-1", "0 or more", "likeliest"]),
        (["generation.temperature=nan"], ["generation.temperature=nan", "0 or more"]),
        (["generation.top_k=0"], ["generation.top_k=0", "above 0"]),
        (["generation.top_p=0"], ["generation.top_p=0", "above 0 and at most 1"]),
        (["generation.top_p=1.5"], ["generation.top_p=1.5", "above 0 and at most 1"]),
        (["generation.seed=1,2"], ["generation.*", "several values"]),
        (["generation.seed=-1"], ["generation.seed=-1", "0"]),
        (["run=nowhere"], ["run=nowhere is not the directory of a run"]),
    ],
)
def test_a_mistake_is_told_before_a_model_is_looked_for(run, overrides, words):
    result = run("generate", *overrides, "prompt=the river")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    for word in words:
        assert word in result.err


@pytest.mark.parametrize(
    "prompt",
    [
        "Hello, world", "def fib(n):", "山，水", "a\nb", " begins with a space", "[1, {", "x=1", "5", "", "'a' or 'b'",
        '"a" and "b"', 'say "so"', "C:\\", "\\\\", '\\"', "${paths.runs}", "\\${x}", "$", "%",
    ],
)  # fmt: skip
def test_a_prompt_is_taken_as_it_was_typed(prompt):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        assert compose("config", overrides=[_quoted(f"prompt={prompt}")]).prompt == prompt


@pytest.mark.parametrize(
    "override, prompt", [("prompt='a, b'", "a, b"), ('prompt="a, b"', "a, b"), ("prompt=null", None)]
)
def test_a_prompt_in_quotes_and_none_are_as_hydra_has_them(override, prompt):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        assert compose("config", overrides=[_quoted(override)]).prompt == prompt
