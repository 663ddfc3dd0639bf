"""The Llama architecture in plain PyTorch."""
