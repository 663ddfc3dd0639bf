"""Quantities to and from the text that people write: tokens, bytes, durations."""

import re

from tinyllama.errors import ConfigError

_SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_TOKENS = re.compile(r"(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*(?P<scale>[KMBT]?)", re.IGNORECASE)


def tokens(value: int | float | str, setting: str = "tokens") -> int:
    """A count of tokens from 1.5e12, 1_500_000_000_000 or "1.5T".

    Raises:
        ConfigError: the text is no number, or the number is negative or not whole.
    """
    match = _TOKENS.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise ConfigError(f"{setting}={value} is not a count of tokens; write it as 1.5e12, 1_500_000_000_000 or 1.5T")
    number, scale = match["number"].replace("_", ""), _SCALES[match["scale"].upper()]
    count = int(number) * scale if number.isdigit() else float(number) * scale
    if count != round(count):
        raise ConfigError(f"{setting}={value} is not a whole number of tokens")
    return round(count)


def format_tokens(count: int) -> str:
    """1_500_000_000_000 -> "1.5T"; three significant digits."""
    return _scaled(count, 1000, ("", "K", "M", "B", "T"))


def format_bytes(count: float) -> str:
    """2_147_483_648 -> "2GiB"; three significant digits, powers of 1024."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_seconds(seconds: float) -> str:
    """3725 -> "1:02:05"; below a minute "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _scaled(count: float, base: int, suffixes: tuple[str, ...]) -> str:
    power = 0
    while power + 1 < len(suffixes) and float(f"{count:.3g}") >= base:
        count, power = count / base, power + 1
    return f"{count:.0f}{suffixes[power]}" if count >= 1000 else f"{count:.3g}{suffixes[power]}"
