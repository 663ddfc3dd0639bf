"""The resume drill: a run that is killed again and again, and whether anything was lost."""
