"""Shards, sampling, augmentation and the phantom cohort."""
