"""Losses, the optimizer, the jitted training step and the loop round it."""
