"""JSON that any reader takes: it has neither NaN nor infinity, which Python would write."""

from __future__ import annotations

from typing import Any

import msgspec


def json_text(value: Any, *, indent: int = 0) -> str:
    """An object, a list or a plain value as JSON; numbers that are not finite become null."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=float), indent=indent).decode()
