"""The recipe: one typed tree that is configuration, command-line option and documentation at once."""
