"""SLURM: what is submitted, what is asked of the queue, and what a job's script does."""
