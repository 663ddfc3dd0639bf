"""Proof of a run from what it left on disk: no GPU, no torch, no text."""
