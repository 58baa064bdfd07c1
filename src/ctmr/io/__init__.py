"""Readers and writers of medical and raster images."""
