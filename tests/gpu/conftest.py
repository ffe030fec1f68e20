"""The device of the tests that need a GPU."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def device() -> str:
    """``cuda``; ``cpu`` where GENOMEPRED_DEVICE says so, to try the tests themselves."""
    return os.environ.get("GENOMEPRED_DEVICE", "cuda")
