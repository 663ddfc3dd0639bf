"""A stream of tokens -> samples of seq_len + 1 tokens at stride seq_len: each token is predicted once."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray


class Packer:
    """Cuts a stream that arrives in pieces; what does not fill a sample yet waits for the next piece."""

    def __init__(self, seq_len: int, dtype: np.dtype) -> None:
        self.seq_len = seq_len
        self.samples = 0
        self._waiting = np.empty(0, dtype)

    def add(self, tokens: NDArray[np.integer]) -> NDArray[np.integer]:
        """The samples that `tokens` complete: [n, seq_len + 1], n may be 0."""
        stream = np.concatenate([self._waiting, tokens], dtype=self._waiting.dtype)
        count = max(0, (len(stream) - 1) // self.seq_len)
        # A copy, lest the tail keep the whole stream in memory.
        self._waiting = stream[count * self.seq_len :].copy()
        self.samples += count
        if not count:
            return np.empty((0, self.seq_len + 1), stream.dtype)
        return sliding_window_view(stream, self.seq_len + 1)[:: self.seq_len]

    @property
    def left_over(self) -> NDArray[np.integer]:
        """Tokens that are in no sample. The last of a sample waits too, as context, but is not left over."""
        return self._waiting[1:] if self.samples else self._waiting


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integers that hold every id."""
    return np.dtype(np.uint16 if vocab_size < 1 << 16 else np.uint32)
