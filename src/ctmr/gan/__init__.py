"""Losses, image pool, training step, trainer and checkpoints."""
