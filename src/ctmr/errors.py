"""Errors that a person can act on, each with the exit code its kind ends a command with."""


class CtmrError(Exception):
    """Base of every error that ends a command with one sentence instead of a traceback.

    The message names the thing, the value found, what is allowed and what to do.
    """

    exit_code = 1


class GateFailed(CtmrError):
    """A model was measured and is not good enough; nothing was registered or deployed. Exit code 1."""

    exit_code = 1


class InputError(CtmrError):
    """Something the user gave (file, recipe, option) cannot be used. Exit code 2."""

    exit_code = 2


class EnvironmentFault(CtmrError):
    """The machine, a server or a store failed, not the input. Exit code 3."""

    exit_code = 3
