"""Training: the loop, its checkpoints, events and alarms."""
