"""How good a translation is: every number under a named protocol."""
