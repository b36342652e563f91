"""Keep other processes of this account out of this one's memory and environment: the run token is in there."""

import ctypes
import resource

PR_SET_DUMPABLE = 4  # linux/prctl.h


def harden() -> None:
    """Make this process neither traceable nor dumpable; does nothing where the kernel has no such call."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (OSError, AttributeError):
        return
