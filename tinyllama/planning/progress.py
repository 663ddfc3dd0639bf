"""How far a stage has come, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Optimizer steps and samples of the stage, and tokens of life since the root."""

    step: int
    samples: int
    tokens: int

    def after(self, samples: int, seq_len: int) -> "Progress":
        """Where a batch of so many samples leads."""
        return Progress(self.step + 1, self.samples + samples, self.tokens + samples * seq_len)

    def crossed(self, before: "Progress", every_tokens: int) -> bool:
        """Whether a multiple of `every_tokens` of life lies between `before` (excluded) and here (included)."""
        return self.tokens // every_tokens > before.tokens // every_tokens
