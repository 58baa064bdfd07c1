"""``python -m ctmr.cli``: the same as the command ``ctmr``."""

from ctmr.cli.app import main

main()
