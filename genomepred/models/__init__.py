"""Architectures, cards and checkpoints."""
