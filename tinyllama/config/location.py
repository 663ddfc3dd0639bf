"""Where conf/ and the launchers lie, and of which commit they are.

Beside the package in a checkout, or in a copy that a job runs; inside the installation otherwise.
"""

import subprocess
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

COMMIT = "COMMIT"
"""The file beside a copy of the code that tells its git commit; empty where there was none."""


def conf_folder() -> Path:
    """The folder of config groups: conf/ of the checkout, or tinyllama/conf of a wheel."""
    beside = _PACKAGE.parent / "conf"
    return beside if (beside / "config.yaml").is_file() else _PACKAGE / "conf"


def expose_launchers() -> None:
    """Let Hydra's plugin scan find launchers/ of a checkout. An installation has them on its path already."""
    launchers = _PACKAGE.parent / "launchers"
    # hydra_plugins is a namespace package: its path follows sys.path, so that other plugins stay visible.
    if launchers.is_dir() and str(launchers) not in sys.path:
        sys.path.append(str(launchers))


def code_folders() -> dict[str, Path]:
    """All folders of code and configuration, by the name under which each would stand in a checkout."""
    launchers = _PACKAGE.parent / "launchers"
    plugins = (launchers if launchers.is_dir() else _PACKAGE.parent) / "hydra_plugins" / "tinyllama_launchers"
    return {"tinyllama": _PACKAGE, "conf": conf_folder(), "launchers/hydra_plugins/tinyllama_launchers": plugins}


def git_commit() -> str | None:
    """The commit of the code that runs: of the repository it lies in, or as a copy of it says in COMMIT."""
    copied_from = _PACKAGE.parent / COMMIT
    if copied_from.is_file():
        return copied_from.read_text(encoding="utf-8").strip() or None
    command = ["git", "-C", str(_PACKAGE), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:  # a machine without git
        return None
