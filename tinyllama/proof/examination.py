"""A list of things that were looked at, and how they were found."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tinyllama.errors import DamageError

Tell = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    """What was found, or the first difference."""


@dataclass
class Examination:
    """Checks one after the other."""

    checks: list[Check] = field(default_factory=list)

    def check(self, name: str, look: Callable[[], str]) -> bool:
        """Whether `look` told what it found; what it raises as DamageError is the first difference."""
        try:
            self.checks.append(Check(name, True, look()))
        except DamageError as error:
            self.checks.append(Check(name, False, str(error)))
        return self.checks[-1].ok
