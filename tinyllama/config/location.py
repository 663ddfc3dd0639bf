"""Where conf/ and the launchers lie: beside the package in a checkout, inside the installation otherwise."""

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


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
