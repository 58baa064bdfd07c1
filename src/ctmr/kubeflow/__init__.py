"""Kubeflow Pipelines: the compiled pipeline, its check, its tasks and its client."""
