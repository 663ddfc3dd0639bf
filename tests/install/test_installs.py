"""conf/ and the launchers are found in each kind of installation, from any working directory."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

PLAN = ["-m", "tinyllama.plan", "+scale=demo", "+variant=standard,chinese", "stage=basic,continual", "format=json"]


def packages() -> set[str]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return set(setup["options"]["packages"].split())


def execute(python: Path, *arguments: str, cwd: Path, **environment: str) -> str:
    """Standard output of a successful call; the environment has no PYTHONPATH unless it is given."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, *arguments], cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What of a clone an installation is made from."""
    folder = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("tinyllama", "conf", "launchers"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment that sees every package of this one, but no installation of ours."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    # A path in a .pth file is searched for packages; .pth files that lie there, of editable installs, are not read.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "python"


def install(python: Path, *what: str | Path) -> None:
    """From local files alone."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-qq"]
    local = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    subprocess.run([*pip, *local, *what], check=True)


def assert_works(python: Path, cwd: Path, conf: Path, **environment: str) -> None:
    """`conf` is the folder that must be used: a plan needs each group of it, and the launchers."""
    location = "from tinyllama.config.location import conf_folder; print(conf_folder())"
    assert Path(execute(python, "-c", location, cwd=cwd, **environment).strip()) == conf
    assert "family: tinyllama" in execute(python, "-m", "tinyllama.train", "--cfg", "job", cwd=cwd, **environment)
    plan = json.loads(execute(python, *PLAN, cwd=cwd, **environment))
    assert sorted(node["stage"] for node in plan["nodes"]) == ["basic", "continual", "continual"]


def test_every_folder_of_the_package_is_packaged() -> None:
    folders = {
        str(module.parent.relative_to(base)).replace("/", ".")
        for base in (ROOT, ROOT / "launchers")
        for module in base.glob("[th]*/**/__init__.py")
        if module.is_relative_to(ROOT / "tinyllama") or module.is_relative_to(ROOT / "launchers")
    }
    assert packages() - {"tinyllama.conf"} == folders


def test_every_package_that_an_extra_brings_is_pinned() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = [text for extra, text in setup["options.extras_require"].items() if extra != "gpu"]
    lines = "\n".join([setup["options"]["install_requires"], *extras]).splitlines()
    waiting = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    needed: set[tuple[str, ...]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "torch" or (name, *requirement.extras) in needed:  # torch pins what it brings for GPUs itself
            continue
        needed.add((name, *requirement.extras))
        theirs = map(Requirement, requires(name) or ())
        wanted = [{"extra": extra} for extra in (*requirement.extras, "")]
        waiting += [each for each in theirs if not each.marker or any(map(each.marker.evaluate, wanted))]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name for name, *_ in needed} - pinned == set()


@pytest.mark.soak
@pytest.mark.slow
def test_a_bare_checkout_works_from_its_own_folder_and_from_others(
    checkout: Path, python: Path, tmp_path: Path
) -> None:
    assert_works(python, checkout, checkout / "conf")
    assert_works(python, tmp_path, checkout / "conf", PYTHONPATH=str(checkout))


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_an_editable_install_works(mode: str, checkout: Path, python: Path, tmp_path: Path) -> None:
    strict = ["--config-settings", "editable_mode=strict"] if mode == "strict" else []
    install(python, *strict, "-e", checkout)
    assert_works(python, tmp_path, checkout / "conf")


@pytest.mark.slow
def test_a_wheel_works_after_its_checkout_is_gone(checkout: Path, python: Path, tmp_path: Path) -> None:
    install(python, checkout)
    shutil.rmtree(checkout)
    (conf,) = tmp_path.glob("environment/lib/python*/site-packages/tinyllama/conf")
    assert_works(python, tmp_path, conf)
    shipped = {path.relative_to(conf) for path in conf.rglob("*.yaml")}
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    beside_code = [path for path in (ROOT / "tinyllama").rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert [path for path in beside_code if not (conf.parents[1] / path.relative_to(ROOT)).is_file()] == []
