"""What a job will run stays as it was when it was submitted."""

import shutil
import subprocess

import numpy as np
import pytest

from tests.conftest import ROOT, run_python
from tests.data.versions import write_version
from tinyllama.checkpoint.layout import RunFolder
from tinyllama.data.inventory import take_inventory
from tinyllama.data.versions import version_folder
from tinyllama.errors import DamageError
from tinyllama.slurm.snapshot import freeze_code, freeze_path, frozen_path

FREEZE = "import sys; from pathlib import Path; from tinyllama.slurm.snapshot import freeze_code; "
FREEZE += "print(freeze_code(Path(sys.argv[1])))"
TELL = """
from hydra import compose, initialize_config_dir
from tinyllama import __version__
from tinyllama.config.app import prepare_hydra
from tinyllama.config.location import conf_folder, git_commit
from hydra_plugins.tinyllama_launchers import job
prepare_hydra()
with initialize_config_dir(str(conf_folder()), version_base="1.3"):
    print(__version__, compose("config").seed, git_commit(), job.__file__)
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code that may be edited, in a repository of its own."""
    folder = tmp_path / "checkout"
    for part in ("tinyllama", "conf", "launchers"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "state"]):
        subprocess.run([*git, *command], check=True)
    return folder


def freeze(checkout, root):
    done = run_python("-c", FREEZE, str(root), env={"PYTHONPATH": str(checkout)}, cwd=root)
    assert done.code == 0, done.err
    return done.out.strip()


def tell(code):
    done = run_python("-c", TELL, env={"PYTHONPATH": f"{code}:{code}/launchers"}, cwd=code)
    assert done.code == 0, done.err
    return done.out.split()


@pytest.mark.slow
def test_edits_of_code_and_conf_do_not_reach_what_was_frozen(checkout, tmp_path):
    code = freeze(checkout, tmp_path)
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    before = tell(code)
    assert before[2:] == [commit.stdout.strip(), f"{code}/launchers/hydra_plugins/tinyllama_launchers/job.py"]
    (checkout / "tinyllama" / "__init__.py").write_text('__version__ = "another"\n')
    conf = checkout / "conf" / "config.yaml"
    conf.write_text(conf.read_text().replace("seed: 3407", "seed: 1"))
    assert tell(checkout)[:2] == ["another", "1"]
    assert tell(code) == before
    assert freeze(checkout, tmp_path) != code


@pytest.mark.slow
def test_an_installation_is_frozen_as_a_checkout_is(checkout, tmp_path):
    site = tmp_path / "site-packages"
    shutil.copytree(checkout / "tinyllama", site / "tinyllama")
    shutil.copytree(checkout / "conf", site / "tinyllama" / "conf")
    shutil.copytree(checkout / "launchers" / "hydra_plugins", site / "hydra_plugins")
    code = freeze(site, tmp_path)
    version, seed, *_, plugin = tell(code)
    assert (version, seed) == tuple(tell(freeze(checkout, tmp_path))[:2])
    assert plugin == f"{code}/launchers/hydra_plugins/tinyllama_launchers/job.py"


def test_the_same_code_is_kept_once_and_what_python_compiles_is_no_code(checkout, tmp_path):
    code = freeze(checkout, tmp_path)
    (checkout / "conf" / "__pycache__").mkdir()
    (checkout / "conf" / "__pycache__" / "config.pyc").write_bytes(b"compiled")
    assert freeze(checkout, tmp_path) == code
    assert [str(path) for path in (tmp_path / ".code").iterdir()] == [code]


def test_a_frozen_code_that_was_edited_is_not_taken_for_what_its_name_says(tmp_path):
    code = freeze_code(tmp_path)
    (code / "tinyllama" / "train.py").write_text("")
    with pytest.raises(DamageError, match="is not the code that it was made from"):
        freeze_code(tmp_path)


def test_the_configs_of_a_path_come_back_as_they_were(compose, tmp_path):
    path = compose("+variant=chinese", "stage=cooldown", "cluster=slurm", "+cluster.slurm.options.reservation=x")
    folder = RunFolder(tmp_path)
    freeze_path(folder, path)
    assert frozen_path(folder) == path
    assert sorted(file.name for file in folder.job_configs.iterdir()) == [
        "0-basic.yaml",
        "1-continual.yaml",
        "2-cooldown.yaml",
    ]


def test_a_version_that_is_prepared_after_the_submission_does_not_reach_the_job(compose, tmp_path):
    def prepare(first):
        return write_version(tmp_path / "data", "demo", "skypile", {
            split: np.arange(first, first + 90).reshape(10, 9) for split in ("train", "validation")
        })  # fmt: skip

    old = prepare(0)
    path = compose(
        "+scale=demo", "+variant=chinese", "stage=continual", "model.seq_len=8", f"paths.data={tmp_path / 'data'}"
    )
    submitted = take_inventory(path).corpora["skypile"]
    freeze_path(RunFolder(tmp_path), path)
    new = prepare(1)
    assert take_inventory(path).corpora["skypile"].fingerprint != submitted.fingerprint
    frozen = frozen_path(RunFolder(tmp_path))
    assert take_inventory(frozen).corpora["skypile"] == submitted
    assert [version_folder(config, "skypile") for config in (frozen[-1], path[-1])] == [old, new]
    assert frozen[-1].corpora["slimpajama"].version is None  # it was not prepared


def test_a_job_without_its_configs_says_so(tmp_path):
    with pytest.raises(DamageError, match="has no configs"):
        frozen_path(RunFolder(tmp_path))
