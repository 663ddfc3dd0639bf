"""Being asked to stop: SIGTERM and USR1 set a flag, the loop looks at it after each step."""

import signal
from types import FrameType

from tinyllama.signals import ASKING


class StopRequest:
    """Whether this process was asked to stop. The ranks agree on it when they reduce the step's metrics."""

    def __init__(self) -> None:
        self.requested = False
        self.for_good = False
        """Whether by something else than USR1."""
        self.agreed_for_good = False
        """Whether any rank was, as of the last step."""

    def listen(self) -> None:
        """From now on there is something to save; until now whoever was asked left at once (tinyllama/signals.py)."""
        for number in ASKING:
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.for_good |= number != signal.SIGUSR1
