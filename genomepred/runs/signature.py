"""The numerics signature: everything that can change a bit of the output.

It is decided once, when a run starts, written to ``OUT/run.json`` and obeyed by every process that
works on the run afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from genomepred.documents import COUNT

if TYPE_CHECKING:
    from genomepred.inference.engine import Numerics

# What JSON must hold for a field, by its type, unless the field says otherwise.
_SCHEMAS: dict[Any, Any] = {
    "str": str,
    "str | None": (str, None),
    "bool": bool,
    "int": range(1, 1 << 62),
    "tuple[str, ...]": [str],
}


@dataclass(frozen=True)
class Signature:
    """Identity of a run's results; equal signatures and sequences give equal bytes.

    ``precision``, ``kernels``, ``compute_batch`` and ``overlap`` are chosen when the run starts;
    the rest follows from input and environment. ``reference`` and ``panel`` are a cohort's.
    """

    model: str
    weights_sha256: str
    code: str | None
    card: str
    window: int
    crop: int = field(metadata={"schema": COUNT})
    bins: int
    bin_size: int
    stride: int
    regions: str | None
    center: bool
    strand: str
    store_dtype: Literal["float32", "float16"] = field(metadata={"schema": str})
    compression: str
    device: str
    threads: int
    genomepred: str
    torch: str
    triton: str | None
    numba: str | None
    zlib: str
    zstandard: str | None
    hdf5: str
    precision: str
    kernels: tuple[str, ...]
    compute_batch: int = field(metadata={"schema": range(1, 1 << 31)})
    overlap: str
    reference: str | None = None
    panel: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The values as JSON holds them."""
        told = {option.name: getattr(self, option.name) for option in fields(self)}
        told["kernels"] = list(self.kernels)
        return {k: v for k, v in told.items() if v is not None or k not in ("reference", "panel")}

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Signature:
        """The signature that :meth:`to_json` has told; further keys are left out."""
        known = {option.name: told[option.name] for option in fields(cls) if option.name in told}
        return cls(**{**known, "kernels": tuple(told["kernels"])})

    @cached_property
    def text(self) -> str:
        """One line of JSON, as parts carry it."""
        return json.dumps(self.to_json(), sort_keys=True)

    @property
    def numerics(self) -> Numerics:
        """Numerics that an engine is to obey."""
        from genomepred.inference.engine import Numerics

        return Numerics(**{option.name: getattr(self, option.name) for option in fields(Numerics)})

    def attributes(self, name: str, digest: str) -> dict[str, str]:
        """Return what a published file says of its run, in the order in which files have it."""
        panel = {} if self.panel is None else {"panel": self.panel}
        return {
            "genome": name,
            "sequence_digest": digest,
            **panel,
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "strand": self.strand,
            "precision": self.precision,
            "package_version": self.genomepred,
        }

    def differing(self, wanted: Mapping[str, Any]) -> list[str]:
        """Names of the fields that are not as wanted."""
        return [name for name in wanted if getattr(self, name) != wanted[name]]


#: What JSON must hold of a signature.
SCHEMA = {
    option.name + ("?" if option.default is None else ""): option.metadata.get("schema")
    or _SCHEMAS[option.type]
    for option in fields(Signature)
}
