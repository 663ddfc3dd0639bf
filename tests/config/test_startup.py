"""The libraries that a command does not import while it starts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from tinyllama.plan import main
main()
print([name for name in ("numpy", "rich", "torch", "importlib.metadata") if name in sys.modules], file=sys.stderr)
"""


def test_a_shown_config_needs_neither_numpy_nor_rich_nor_torch(tmp_path):
    """Hydra imports the launchers to show a config, too."""
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--cfg", "job"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "family: tinyllama" in shown.stdout
    assert shown.stderr == "[]\n"
