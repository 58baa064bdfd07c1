"""Argument of a program that other users of the machine cannot read in the list of processes."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctmr.errors import EnvironmentFault

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long
_TRACEME, _DETACH = 0, 17
_VARIABLE = "HIDDEN_ARGUMENT"
_STANDS_FOR = "--hidden-argument"
_WORD = struct.calcsize("P")
# Fields of proc_pid_stat(5), counted from the third, which follows the name.
_START_STACK, _ENV_START, _ENV_END = 28 - 3, 50 - 3, 51 - 3


def start_with_hidden(
    command: Sequence[str], hidden: str, environment: Mapping[str, str], **more: Any
) -> subprocess.Popen[Any]:
    """Start a program in a session of its own with one more argument, which only its owner can read.

    ``/proc/PID/cmdline`` shows everybody the memory that the kernel filled with the arguments, while
    ``/proc/PID/environ`` opens for the owner alone. So the argument travels as a variable of the environment, and
    before the program's first instruction its last entry of ``argv`` is pointed there; what the list of processes
    shows instead is a word that no program understands.

    Parameters
    ----------
    hidden
        Becomes the last argument.
    environment
        All of it.
    more
        As `subprocess.Popen` takes them.

    Raises
    ------
    EnvironmentFault
        The kernel does not let a parent trace its child.
    OSError
        The program cannot be started.
    """
    variables = {**environment, _VARIABLE: hidden}
    try:
        child = subprocess.Popen(
            [*command, _STANDS_FOR],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_ask_to_be_traced,
            env=variables,
            **more,
        )
    except subprocess.SubprocessError as error:
        raise EnvironmentFault(
            f"{command[0]} is not started, because its secret could not be hidden from other users: this kernel or "
            "container forbids ptrace; allow it, or use a server that somebody else runs"
        ) from error
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGTRAP:
            raise OSError(f"{command[0]} ended before it began")
        _point_last_argument_at_variable(child.pid)
    except BaseException:
        child.kill()
        child.wait()
        raise
    _LIBC.ptrace(_DETACH, child.pid, None, None)
    return child


def _ask_to_be_traced() -> None:
    if _LIBC.ptrace(_TRACEME, 0, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _point_last_argument_at_variable(pid: int) -> None:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    stack, first, end = (int(fields[field]) for field in (_START_STACK, _ENV_START, _ENV_END))
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(first)
        block = b"\0" + memory.read(end - first)
        name = f"\0{_VARIABLE}=".encode()
        value = first - 1 + block.index(name) + len(name)
        # At a program's start its stack holds argc, argv[0], …, argv[argc - 1].
        memory.seek(stack)
        (count,) = struct.unpack("P", memory.read(_WORD))
        memory.seek(stack + _WORD * count)
        memory.write(struct.pack("P", value))
