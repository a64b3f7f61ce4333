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


def failure(what: str, error: BaseException) -> M6RecError:
    """The error to raise where something could not be read or written: UnreachableError if another
    try may do.

    `what` says what failed, and where: "step 3 could not be saved to /runs/a".
    """
    text = "\n".join(map(str, causes(error)))
    kind = UnreachableError if _PASSING.search(text) else CheckpointError
    return kind(f"{what}: {first_line(error)}")
