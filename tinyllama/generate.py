"""Continue a text: `python -m tinyllama.generate +variant=chinese stage=cooldown prompt="Once upon a time"`.

`+variant=standard,math_code,chinese` has it continued by each of these models, and so do several stages.
run=DIRECTORY names another run than the one that the settings declare, or any folder in Hugging Face's layout;
at_tokens=N another checkpoint than the last. Without prompt=... it is the text on standard input.
generation.temperature=0 takes the likeliest token each time; generation.{max_tokens,top_k,top_p,seed} say the rest.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tinyllama.checkpoint.choice import choose_all, hugging_face_folder, load_model
from tinyllama.config.app import family_command, setting_of
from tinyllama.config.checks import check_generation
from tinyllama.config.schema import Format, RunConfig
from tinyllama.errors import ConfigError

Job = tuple[RunConfig, list[str]]


class _Model(NamedTuple):
    """What continues the text, once it is loaded."""

    name: str
    title: str
    load: Callable[[], tuple[Any, Any]]
    """Model and tokenizer, as model/transformers.py makes them."""


@family_command
def _generate(jobs: Sequence[Job]) -> None:
    config = jobs[0][0]
    check_generation(config.generation)
    if any((job.prompt, job.generation) != (config.prompt, config.generation) for job, _ in jobs):
        raise ConfigError("prompt and generation.* have several values; all models of a call continue one text")
    prompt = _prompt(config)
    models = _models(jobs)
    if config.format is Format.json:
        documents = [_continue(model, prompt, config, show=lambda text: None) for model in models]
        print(json.dumps({"models": documents} if len(models) > 1 else documents[0], ensure_ascii=False))
        return
    for number, model in enumerate(models):
        if len(models) > 1:
            print("\n" * (number > 0) + f"== {model.title} ==")
        print(prompt, end="", flush=True)
        document = _continue(model, prompt, config, show=partial(print, end="", flush=True))
        print(flush=True)
        if document["finish"] == "seq_len":
            print(f"{model.name}: prompt and text fill the model's context, so it ends there", file=sys.stderr)


def _prompt(config: RunConfig) -> str:
    """The text to continue; of standard input without the end of its last line."""
    given = config.prompt
    if given is None and sys.stdin.isatty():
        raise ConfigError('prompt has no value; write prompt="TEXT", or give a text on standard input')
    try:
        text = (sys.stdin.buffer.read() if given is None else os.fsencode(given)).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt is no UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    if given is not None:
        return text
    if not text:
        raise ConfigError('standard input is empty; give a text there, or write prompt="" to begin a document')
    return text.removesuffix("\n")


def _models(jobs: Sequence[Job]) -> list[_Model]:
    """Those that the jobs are about, each once."""
    folders = dict.fromkeys(folder for config, _ in jobs if (folder := hugging_face_folder(config)) is not None)
    chosen = choose_all([job for job in jobs if hugging_face_folder(job[0]) is None])
    return [
        *(_Model(each.name, f"{each.variant}, {each.name}", partial(load_model, each)) for each in chosen),
        *(_Model(str(folder), str(folder), partial(_load_folder, folder)) for folder in folders),
    ]


def _load_folder(folder: Path) -> tuple[Any, Any]:
    from tinyllama.model.transformers import load_hf, place

    device, dtype = place()
    model, tokenizer = load_hf(folder, dtype)
    return model.to(device), tokenizer


def _continue(model: _Model, prompt: str, config: RunConfig, show: Callable[[str], None]) -> dict[str, Any]:
    """As format=json prints it."""
    from tinyllama.model.generation import continue_text

    answer = continue_text(*model.load(), prompt, config.generation, show)
    return {"model": model.name, "prompt": prompt, **answer._asdict()}


def main() -> None:
    """A prompt is taken as it was typed, where Hydra would find lists, numbers and interpolations in it."""
    sys.argv[1:] = [_quoted(text) if setting_of(text) == "prompt" else text for text in sys.argv[1:]]
    _generate()


def _quoted(override: str) -> str:
    """The override with its value in quotes, unless it is in quotes already or null."""
    setting, _, text = override.partition("=")
    if text == "null" or re.fullmatch(r"""(["'])(\\.|(?!\1).)*\1""", text, re.DOTALL):
        return override
    # Before a quote, and before ${, backslashes count twice; elsewhere they are what they are.
    doubled = re.sub(r'(\\*)(?="|\$\{|$)', r"\1\1", text)
    escaped = re.sub(r'("|\$\{)', r"\\\1", doubled)
    return f'{setting}="{escaped}"'


if __name__ == "__main__":
    main()
