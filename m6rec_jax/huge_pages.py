"""Memory in pages of 2 MiB, for commands that compute on a CPU."""

import os
import sys

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def start_with_huge_pages() -> None:
    """Starts this process anew, once, with a malloc that asks Linux for huge pages.

    XLA allocates the buffers of a program whenever it runs, and large ones are mapped anew each
    time: in pages of 4 KiB that is a good part of a step (docs/training.md, "Huge pages"). glibc
    reads its settings before Python runs, so they cannot be changed later; processes that this one
    starts inherit them. Whoever sets them stays with their own. Other C libraries read no such
    variable.
    """
    if sys.platform == "linux" and not HUGE_PAGES.keys() & os.environ.keys():
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, os.environ | HUGE_PAGES)
