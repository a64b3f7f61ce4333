"""The made-up shop."""

from tests.data.conftest import write_shop

__all__ = ["write_shop"]
