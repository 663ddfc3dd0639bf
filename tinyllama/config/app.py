"""Makes a function into a command: Hydra composes, mistakes become one message, faults keep their stack trace.

The only user of hydra beside the launchers.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import (
    _run_app,
    create_automatic_config_search_path,
    detect_calling_file_or_module_from_task_function,
    detect_task_name,
    get_args_parser,
)
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from tinyllama.config.composition import compose
from tinyllama.config.load import load, typed_overrides
from tinyllama.config.location import conf_folder, expose_launchers
from tinyllama.config.mistakes import COMPLAINTS, explain
from tinyllama.config.schema import RunConfig
from tinyllama.config.usage import usage
from tinyllama.errors import ConfigError, TinyllamaError

Main = Callable[[RunConfig, list[str]], None]
"""A command's body: the config, and the overrides that were typed."""

FamilyMain = Callable[[list[tuple[RunConfig, list[str]]]], None]
"""The body of a command that sees all jobs of a sweep at once, each with its config and its overrides."""


LOCAL = ("local", "basic")
"""The launchers that run jobs on this machine; basic is what Hydra calls the one that nobody chose."""


def command(main: Main, sweeps: bool = False, launchers: bool = False, always: str | None = None) -> Callable[[], None]:
    """The command-line program whose body is `main`; exit codes are those of errors.py.

    Args:
        sweeps: -m makes sense: the launchers, which train or plan, do what the command does.
        launchers: without -m, too, a launcher that is not local does it, when it is chosen.
        always: the launcher that does it, whichever is chosen, as a sweep even where there is but one job.
    """

    def run() -> None:
        if {"--help", "-h"} & set(sys.argv):
            print(usage(sys.modules[main.__module__].__doc__ or ""), end="")
            return
        typed = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
        try:
            if always is not None:
                sys.argv[1:] = _swept(sys.argv[1:], always)
            elif not sweeps and {"--multirun", "-m"} & set(sys.argv):
                raise ConfigError(
                    "-m is for train, plan, evaluate and generate, which see a family whole; "
                    "call this command once for each"
                )
            _start_hydra(main, launchers)
            sys.stdout.flush()
        except TinyllamaError as error:
            _leave(error)
        except COMPLAINTS as error:
            _leave(explain(error, typed))
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:  # whoever reads the output has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return run


def family_command(main: FamilyMain) -> Callable[[], None]:
    """The program whose body is given all jobs of a sweep at once; -m may be left out, and one job is a list of one.

    Used as a decorator:

        @family_command
        def main(jobs: list[tuple[RunConfig, list[str]]]) -> None: ...
    """
    return command(main, always="together")  # type: ignore[arg-type]  # that launcher calls it, with its jobs


def compose_path(overrides: Sequence[str]) -> tuple[RunConfig, ...]:
    """The configs of a stage and of all its ancestors, the root first. Works inside a command only.

    An ancestor is composed from the same overrides without `parent` and those of `stage`, which speak of the stage at
    hand; `stages.NAME.FIELD=VALUE` speaks of stage NAME whoever asks.

    Raises:
        ConfigError: the parents go in a circle.
    """
    config = _compose_stage(overrides)
    path = [config]
    while (parent := config.stage.parent_stage) is not None:
        if parent in (stage.stage.name for stage in path):
            raise ConfigError(f"stage.parent={parent} closes a circle; a stage cannot be its own ancestor")
        config = _compose_stage(_of_ancestor(overrides, parent))
        path.append(config)
    return tuple(reversed(path))


def setting_of(override: str) -> str:
    """The name of the setting of an override: "+stage.tokens=3" -> "stage.tokens"."""
    return override.lstrip("+~").split("=")[0]


def _of_ancestor(overrides: Sequence[str], stage: str) -> list[str]:
    """The same overrides for another stage; in the same order, so that what was composed before is found again."""
    kept = [text for text in overrides if not setting_of(text).startswith("stage.") and setting_of(text) != "parent"]
    chosen = [f"stage={stage}" if setting_of(text) == "stage" else text for text in kept]
    return chosen if f"stage={stage}" in chosen else [*chosen, f"stage={stage}"]


def _compose_stage(overrides: Sequence[str]) -> RunConfig:
    """The config of the stage that the overrides name, with what `stages.NAME.FIELD` and `parent` say of it."""
    config = compose(overrides)
    said = {setting_of(text): text.partition("=")[2] for text in overrides}
    prefix = f"stages.{config.stage.name}."
    meant = {setting: setting.replace(prefix, "stage.") for setting in said if setting.startswith(prefix)}
    meant |= {"parent": "stage.parent"} if "parent" in said else {}
    extra = [f"{field}={said[setting]}" for setting, field in meant.items() if field not in said]
    return compose([*overrides, *extra]) if extra else config


def prepare_hydra() -> None:
    """Make the schema and the launchers known, and have errors reach us as exceptions."""
    # Without it Hydra prints its own half of a stack trace and leaves with 1, whatever went wrong.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    expose_launchers()
    ConfigStore.instance().store(name="schema", node=RunConfig)


def _start_hydra(main: Main, launchers: bool) -> None:
    prepare_hydra()
    errors: list[Exception] = []

    @wraps(main)  # so that Hydra calls the job by the command's name
    def task(raw: DictConfig) -> None:
        hydra_config = HydraConfig.instance().cfg
        assert hydra_config is not None
        overrides = typed_overrides(hydra_config)
        try:
            config = load(raw)
            if launchers and _goes_elsewhere(hydra_config):
                _launcher(task, hydra_config).launch([overrides], initial_job_idx=0)
            else:
                main(config, overrides)
        except (TinyllamaError, BrokenPipeError) as error:  # Hydra would add lines of its own about it
            errors.append(error)
        except COMPLAINTS as error:
            errors.append(explain(error, overrides))

    task.__name__ = Path(main.__code__.co_filename).stem  # so that launchers know which command it is
    _run_hydra(task)
    if errors:
        raise errors[0]


def _run_hydra(task: Callable[[DictConfig], None]) -> None:
    """What hydra.main does, without composing once only to look for hydra.mode, where nothing sets it."""
    folder, decorate = (
        conf_folder(),
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config"),
    )
    arguments = get_args_parser().parse_args()
    given = {name for name, value in vars(arguments).items() if value} - {"overrides"}
    settings = [setting_of(text) for text in arguments.overrides]
    known = all(not name.startswith("hydra") or _chooses_launcher(name) for name in settings)
    if not given <= {"multirun"} or not known or _sets_mode(folder):
        decorate(task)()
        return
    file, module = detect_calling_file_or_module_from_task_function(task)
    search_path = create_automatic_config_search_path(file, module, str(folder))
    started = Hydra.create_main_hydra2(detect_task_name(file, module), search_path)
    try:
        _run_app(
            run=not arguments.multirun,
            multirun=arguments.multirun,
            mode=None,
            hydra=started,
            config_name="config",
            task_function=task,
            overrides=arguments.overrides,
        )
    finally:
        GlobalHydra.instance().clear()


def _sets_mode(folder: Path) -> bool:
    """Whether a file may set hydra.mode."""
    texts = (path.read_bytes() for path in folder.rglob("*.yaml"))
    return any(b"hydra" in text and re.search(rb"\bmode\b", text) for text in texts)


def _swept(arguments: Sequence[str], launcher: str) -> list[str]:
    """The command line of a sweep for a launcher."""
    if {"--cfg", "-c"} & set(arguments):  # which only shows, and is refused in a sweep
        return list(arguments)
    kept = [text for text in arguments if not _chooses_launcher(text) and text not in ("--multirun", "-m")]
    # Hydra reads overrides in one row only: ours goes where the person's begin.
    first = next((at for at, text in enumerate(kept) if "=" in text and text[0] != "-"), len(kept))
    return ["--multirun", *kept[:first], f"hydra/launcher={launcher}", *kept[first:]]


def _chooses_launcher(argument: str) -> bool:
    """Whether it says what is to run the jobs."""
    return setting_of(argument) == "hydra/launcher" or setting_of(argument).startswith("hydra.launcher.")


def _goes_elsewhere(hydra_config: Any) -> bool:
    """Whether a single job is for a launcher; those of a sweep are with theirs already."""
    chosen = hydra_config.hydra.runtime.choices["hydra/launcher"]
    return hydra_config.hydra.mode is RunMode.RUN and chosen not in LOCAL


def _launcher(task: Callable[[DictConfig], None], hydra_config: Any) -> Launcher:
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=hydra_config)


def _leave(error: TinyllamaError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
