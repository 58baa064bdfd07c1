"""MLflow: runs, registered models, and the lineage of a synthetic image."""
