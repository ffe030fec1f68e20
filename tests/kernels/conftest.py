"""A part of the suites that run in processes of their own."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every n-th test only, as `test_triton.py` asks for in the default run."""
    items[:] = items[:: int(os.environ.get("GENOMEPRED_EVERY", "1"))]
