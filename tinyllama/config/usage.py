"""What `--help` prints. Hydra's own takes longer than composing a run does."""

from tinyllama.config.location import conf_folder

_TEMPLATE = """{purpose}

Write GROUP=OPTION to choose and SETTING=VALUE to set; +variant=... and +scale=... append their group.
With -m a setting may have several values: stage=basic,continual runs each, parents first.

Groups and their options (files of {conf}):
{groups}

Settings: --cfg job shows all of them as they result from what stands before it on the command line.
Counts of tokens may be written 1.5e12, 1_500_000_000_000 or 1.5T. format=json prints one JSON document.
Exit codes: 0 done, 2 a mistake in configuration or input, 3 damage on disk, 75 stopped in good order.
"""


def usage(purpose: str) -> str:
    """The help of a command whose docstring is `purpose`."""
    groups = sorted(folder for folder in conf_folder().iterdir() if folder.is_dir())
    options = {group.name: ", ".join(sorted(path.stem for path in group.glob("*.yaml"))) for group in groups}
    rows = "\n".join(f"  {name}: {names}" for name, names in options.items())
    return _TEMPLATE.format(purpose=purpose.strip(), conf=conf_folder(), groups=rows)
