"""Quality of a translation: every number under a named protocol."""
