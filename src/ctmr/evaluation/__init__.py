"""Evaluation: everything that is measured on the test set, and the report that shows it."""
