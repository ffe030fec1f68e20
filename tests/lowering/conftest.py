"""Settings that all tests of the lowering run with."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """One thread: another number changes last bits."""
    torch.set_num_threads(1)
