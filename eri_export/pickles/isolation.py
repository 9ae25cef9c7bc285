"""Takes the network away from this process, where the kernel allows it."""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h


def drop_network() -> str | None:
    """Moves this process into a network namespace of its own, which has no interface that is up.

    A process without privileges makes a user namespace first, which needs a process of one thread:
    call this before a library that starts threads is imported.

    Returns:
        None if the network is gone, else why it is not.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no network namespaces"
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET):
        if unshare(flags) == 0:
            return None
    return f"the kernel refuses a network namespace: {os.strerror(ctypes.get_errno())}"
