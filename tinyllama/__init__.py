"""Pre-training of families of language models: Hydra composes, DeepSpeed trains, MosaicML streaming feeds."""

import os

__version__ = "0.1.0"

# Before torch is loaded: threads that wait for each other should sleep. Spinning, they take the core from the very
# thread they wait for as soon as anything else runs on the machine, and training falls to a tenth of its speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
