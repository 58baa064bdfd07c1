"""Running the stages in order."""
