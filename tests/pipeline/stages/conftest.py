"""The fixtures of a few pixels."""

from few_pixels import database, preprocessed, tiny

__all__ = ["database", "preprocessed", "tiny"]
