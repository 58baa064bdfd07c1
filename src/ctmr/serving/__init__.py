"""Export, Triton model repository, embedded server, client and rollout."""
