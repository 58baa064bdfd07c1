"""The eight stages; they alone join the core to MLOps."""
