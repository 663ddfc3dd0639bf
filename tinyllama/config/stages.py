"""What the options of the stage group say of each other, without composing them."""

from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf


def continued_stages() -> frozenset[str]:
    """The stages that another stage of conf/ names as its parent. Works inside a command only."""
    parents = map(declared_parent, _loader().get_group_options("stage"))
    return frozenset(parent for parent in parents if parent is not None)


def declared_parent(stage: str) -> str | None:
    """The parent that the file of a stage names, if there is such a file and it names one."""
    file = _loader().repository.load_config(f"stage/{stage}")
    if file is None:
        return None
    said: Any = OmegaConf.to_container(file.config, resolve=False)
    if "_global_" in file.header.values():
        said = said.get("stage", {})
    parent = said.get("parent")
    return parent if isinstance(parent, str) else None


def _loader() -> ConfigLoaderImpl:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader
