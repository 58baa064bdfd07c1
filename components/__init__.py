"""Kubeflow components: one folder a stage, each a thin shell over `ctmr.pipeline`."""

from ctmr import __version__

IMAGE = f"ctmr:{__version__}"
"""Image of every task. `ctmr pipeline compile --image` names another, with a registry and a digest for a cluster."""
