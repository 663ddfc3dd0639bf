"""From raw text to packed samples, and from shards to batches in exact order."""
