"""The optional zstd codec: HDF5 filter 32015, registered by hdf5plugin."""

from __future__ import annotations

from genomepred.errors import optional

FILTER = 32015
LEVEL = 3  # the codec's default; see the measurements in schema.py


def require() -> None:
    """Load the libraries that write and read zstd.

    Raises
    ------
    DependencyError
        If one is not installed.
    """
    with optional("compression zstd", "zstd"):
        import hdf5plugin  # noqa: F401  (importing it registers the filter)
        import zstandard  # noqa: F401
