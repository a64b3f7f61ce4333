"""Memory in pages of 2 MiB, for commands that train on a CPU."""

import os
import sys

_TUNABLES = "GLIBC_TUNABLES"


def start_with_huge_pages() -> None:
    """Starts this process anew, once, with a malloc that asks Linux for huge pages.

    XLA allocates the buffers of a step whenever it runs, and large ones are mapped anew each time:
    in pages of 4 KiB that is a tenth of the work of a step (docs/results.md, "Memory kept between
    steps"). glibc reads its settings before Python runs, so they cannot be changed later; processes
    that this one starts inherit them. Whoever sets them stays with their own. Other C libraries
    read no such variable.
    """
    if sys.platform == "linux" and _TUNABLES not in os.environ:
        environment = os.environ | {_TUNABLES: "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
