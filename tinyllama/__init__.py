"""Pre-training of families of language models: Hydra composes, DeepSpeed trains, MosaicML streaming feeds."""

__version__ = "0.1.0"
