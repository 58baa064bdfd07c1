"""Names of the eight stages, in order; nothing else, so that a door can list them without importing one."""

STAGE_NAMES = ("fetch", "validate", "preprocess", "tune", "train", "evaluate", "register", "deploy")
