"""The demo: a phantom cohort in a git + DVC repository of its own, and the summary a person sees."""
