"""Hydra launchers over the family tree: `local` trains it on this machine, `slurm` on a cluster, `plan` shows it.

Hydra imports all modules here whenever a command starts, except those of a leading underscore, which do the work.
"""
