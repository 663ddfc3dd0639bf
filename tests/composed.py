"""Imported by the server that forks commands: composes the small family once, so that its processes find it cached."""

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tests.end_to_end.conftest import SMALL, STAGES, VARIANTS
from tinyllama.config.app import compose_path, prepare_hydra
from tinyllama.config.location import conf_folder

prepare_hydra()
with initialize_config_dir(str(conf_folder()), version_base="1.3"):
    for _stage in STAGES:
        compose_path([*SMALL, f"stage={_stage}"])
        for _variant in VARIANTS:
            compose_path([*SMALL, f"+variant={_variant}", f"stage={_stage}"])
GlobalHydra.instance().clear()
