"""The command line: one file a group of commands, thin; every heavy import happens inside the command that needs it."""
