"""Hydra launchers over the family tree: `local` trains it on this machine, `plan` only shows it."""
