"""Hashes in hexadecimal of text and files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(content: str | bytes) -> str:
    """Of bytes, or of text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(path: Path) -> str:
    """Of what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
