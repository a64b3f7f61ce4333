"""What Orbax and TensorStore raise when they cannot read or write, as errors for the user.

Both raise many types: `ValueError` for a place that does not answer as for a file that is damaged.
What sets them apart are the status names in their texts (gRPC's, which TensorStore uses, too).
"""

from __future__ import annotations

import re

from m6rec_jax.errors import CheckpointError, M6RecError, UnreachableError, causes, first_line

# Another start may mend it: a bucket that does not answer now.
_PASSING = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b|[Tt]ime-?out was reached|[Cc]ould not connect"
    r"|[Cc]onnection reset|[Ss]ocket closed"
)
# What is there is as it was, and this process may not have it, or has no room for it.
_NO_DAMAGE = re.compile(r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED)\b")


def write_failure(what: str, error: BaseException) -> M6RecError:
    """The error to raise where something could not be written: UnreachableError if another try may
    do.

    `what` says what was to be written, and where: "step 3 could not be saved to /runs/a".
    """
    kind = UnreachableError if _PASSING.search(_whole_text(error)) else CheckpointError
    return kind(f"{what}: {first_line(error)}")


def read_failure(where: str, error: BaseException) -> M6RecError | None:
    """The error to raise where something could not be read; None where it must be damaged."""
    text = _whole_text(error)
    if _PASSING.search(text):
        return UnreachableError(
            f"{where} does not answer now: {first_line(error)}. The same command again may do"
        )
    if _NO_DAMAGE.search(text) or isinstance(error, PermissionError | MemoryError):
        return CheckpointError(f"{where} could not be read: {first_line(error)}")
    return None


def _whole_text(error: BaseException) -> str:
    return "\n".join(map(str, causes(error)))
