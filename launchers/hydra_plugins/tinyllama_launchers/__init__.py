"""Hydra launchers over the family tree: `local` trains it on this machine, `slurm` on a cluster, `plan` shows it."""
