"""Evaluation: everything that is measured on the held-out test, and the report that shows it."""
