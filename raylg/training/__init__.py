"""The trainer: plain PyTorch, which has never heard of Ray."""
