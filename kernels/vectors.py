"""Widths of the vectors that CPU implementations work on."""

from __future__ import annotations

from genomepred.machine_code import cpu_features

LANES, PAIR = 8, 16  # values of the vectors that rows are gone through by

_FEATURES = cpu_features()
# float32 values of a vector register; whether there are 32 of them, as with AVX-512 and NEON.
WIDE = 16 if "avx512f" in _FEATURES else 8 if "avx2" in _FEATURES else 4
MANY = bool({"avx512f", "neon"} & _FEATURES)
