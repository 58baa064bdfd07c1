"""Datasets in a git + DVC repository: importers of published sets, de-identification, adding, checking, pushing."""
