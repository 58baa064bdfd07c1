"""The eight stages, one file each."""
