"""Training steps on DeepSpeed ZeRO, and the processes they run in."""
