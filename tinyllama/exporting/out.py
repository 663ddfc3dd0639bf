"""Where an export may be written. Light: no torch."""

from pathlib import Path

from tinyllama.errors import ConfigError


def require_free(out: str | None) -> Path:
    """The folder to write.

    Raises:
        ConfigError: none is named, or something stands there.
    """
    if out is None:
        raise ConfigError("out has no value; name the folder that is to be written: out=FOLDER")
    folder = Path(out).expanduser().absolute()
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"out={out} exists, and nothing is overwritten; name another folder, or remove it")
    return folder
