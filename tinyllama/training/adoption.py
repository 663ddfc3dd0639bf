"""`adopt=PATH`: a checkpoint that was trained under another identity becomes a state of the declared run.

It is a person's word that the two mean the same; the checkpoints say for ever that it was given.
"""

from pathlib import Path

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.checkpoint.manifest import MANIFEST, Checkpoint, read_manifest
from tinyllama.checkpoint.placing import adopt_checkpoint
from tinyllama.config.schema import RunConfig
from tinyllama.errors import ConfigError
from tinyllama.planning.flops import num_parameters
from tinyllama.planning.plan import RunPlan
from tinyllama.planning.progress import Progress
from tinyllama.training.description import describe
from tinyllama.training.gate import sole_trainer


def adopt(config: RunConfig, plan: RunPlan) -> None:
    """Copy what `config.adopt` names into the run's directory, unless that has been done.

    Raises:
        ConfigError: it is no checkpoint, stands at no step of the stage, is of another model, or the run has a state.
        DamageError: its files are not what its manifest says.
    """
    assert config.adopt is not None
    folder = RunFolder.of(config.paths.runs, plan)
    original = _find(Path(config.adopt).absolute())
    if positions := folder.checkpoint_tokens():
        present = read_manifest(folder.checkpoint(positions[-1])).adopted or {}
        if present.get("path") == str(original.path):
            return
        raise ConfigError(
            f"adopt={config.adopt}: {folder.path} has checkpoints of its own, up to {positions[-1]} tokens; go on from "
            f"them without adopt, or move the directory away"
        )
    progress = _progress(plan, original.progress.tokens, config.adopt)
    _check_size(config, original)

    with sole_trainer(folder):
        describe(config, plan, (config.variant,))
        adopt_checkpoint(original.path, folder, plan.digest, progress, {})


def _find(path: Path) -> Checkpoint:
    """The checkpoint at a path, or the newest one of the run there."""
    if (path / MANIFEST).is_file():
        return read_manifest(path)
    positions = RunFolder(path).checkpoint_tokens()
    if not positions:
        raise ConfigError(
            f"adopt={path} is neither a checkpoint nor the directory of a run that has one; name a folder that holds "
            f"{MANIFEST}, as .../checkpoints/TOKENS do"
        )
    return read_manifest(RunFolder(path).checkpoint(positions[-1]))


def _progress(plan: RunPlan, tokens: int, said: str) -> Progress:
    steps, rest = divmod(tokens - plan.start_tokens, plan.batch_tokens)
    if rest or not 0 < steps <= plan.steps:
        raise ConfigError(
            f"adopt={said} stands at {tokens} tokens of life, which is no step of stage={plan.stage}: it goes from "
            f"{plan.start_tokens} to {plan.end_tokens} in steps of {plan.batch_tokens}; adopt it under a stage that "
            f"passes there"
        )
    return Progress(step=steps, samples=steps * plan.batch_samples, tokens=tokens)


def _check_size(config: RunConfig, original: Checkpoint) -> None:
    """The file of weights tells how many there are; names and shapes are compared when they are loaded."""
    expected = 4 * num_parameters(config.model)
    found = original.files.get("weights.safetensors", {}).get("bytes", 0)
    if not expected <= found < expected * 1.1 + 2**20:
        raise ConfigError(
            f"adopt={config.adopt} holds {found} bytes of weights, and model={config.model.name} has {expected}; "
            f"choose the model that was trained there"
        )
