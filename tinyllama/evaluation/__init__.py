"""What models can do: lm-eval's tasks, and bits per byte of held-out text, beside parents and published figures."""
