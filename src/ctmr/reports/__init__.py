"""Figures, HTML report and model card."""
