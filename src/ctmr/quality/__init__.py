"""Findings over an inventory: pure functions."""
