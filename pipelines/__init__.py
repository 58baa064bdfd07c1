"""The Kubeflow pipeline and its compiled form."""
