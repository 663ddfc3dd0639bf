"""Pure arithmetic of a run: identity, mixture, order, schedule, batch, tree. Needs no torch."""
