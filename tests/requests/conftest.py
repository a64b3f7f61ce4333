"""The made-up shop of the tests of data sets."""

from tests.data.conftest import write_shop

__all__ = ["write_shop"]
