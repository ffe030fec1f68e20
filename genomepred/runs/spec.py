"""The words of a run: what it is asked, and the numerics signature that it records.

The command line's options, what a worker process is told and the checks of
:func:`genomepred.predict` come from one declaration. The signature is all that can change a bit of
the output: decided once, when a run starts, written to ``OUT/run.json`` and obeyed by every process
that works on the run afterwards. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genomepred.documents import COUNT
from genomepred.errors import OptionError, RegionError
from genomepred.runs.inputs import GenomePath

if TYPE_CHECKING:
    from genomepred.inference.engine import Numerics

# Integers without another end go no further.
LARGEST = 2**31 - 1
_POSITIVE = range(1, LARGEST + 1)
COMPRESSIONS = ("deflate", *(f"deflate-{level}" for level in range(1, 10)), "zstd", "none")


@dataclass(frozen=True)
class Option:
    """The words and the check of an option; its field holds its default.

    Parameters
    ----------
    help : str
        For the command line; ends with the default in words where that is None.
    choices : tuple of str
        All values it may have, if they are few.
    range : range, optional
        Of an integer.
    listed : bool
        Whether the command line shows the choices by itself.
    """

    help: str
    choices: tuple[str, ...] = ()
    range: range | None = None
    listed: bool = True


def _told(text: str, **how: Any) -> dict[str, Option]:
    return {"option": Option(text, **how)}


@dataclass(frozen=True)
class RunSpec:
    """The declaration of a run; see :func:`genomepred.predict` for the meaning of each field.

    Raises
    ------
    OptionError
        If a value is none of its option's, or two contradict each other.
    RegionError
        If the BED is no regular file.
    """

    genomes: tuple[GenomePath, ...]
    model: str
    out: Path
    stride: int | None = field(
        default=None,
        metadata=_told("Bases between windows.  [default: the card's]", range=_POSITIVE),
    )
    regions: Path | None = field(
        default=None,
        metadata=_told(
            "BED file: only rows that meet its regions; with an explicit --overlap, the same bits "
            "as in a run without.  [default: whole genomes]",
        ),
    )
    center: bool = field(
        default=False,
        metadata=_told("With --regions: one window centered on each record.  [default: off]"),
    )
    strand: str = field(
        default="forward",
        metadata=_told(
            "Strand to predict; mean averages both, each gives two tracks.",
            choices=("forward", "reverse", "mean", "each"),
        ),
    )
    batch_size: int | None = field(
        default=None,
        metadata=_told(
            "Windows handed to the device at a time; never changes a value.  [default: by window "
            "and device]",
            range=_POSITIVE,
        ),
    )
    device: str = "auto"
    precision: str = field(
        default="auto",
        metadata=_told(
            "auto: fp32 on CPU, else the fastest that the card's tolerance allows.",
            choices=("auto", "fp32", "fp16", "bf16"),
        ),
    )
    overlap: str = field(
        default="auto",
        metadata=_told(
            "share: convolve a base once for all windows that see it; naive: every window by "
            "itself; auto: share where that is clearly faster for the rows asked for.",
            choices=("auto", "share", "naive"),
        ),
    )
    kernels: str = field(
        default="auto",
        metadata=_told(
            "What computes convolutions. auto: for each the fastest known for the device "
            "(`genomepred doctor` tells); reference: the model as written.",
            choices=("auto", "triton", "cudnn", "cpu", "reference"),
        ),
    )
    store_dtype: Literal["float32", "float16"] = field(
        default="float32",
        metadata=_told(
            "Type of the stored predictions; float16 rounds to 11 bits and ends at 65,504.",
            choices=("float32", "float16"),
        ),
    )
    compression: str = field(
        default="deflate",
        metadata=_told(
            "deflate, deflate-1 to deflate-9, zstd (needs a plug-in to read) or none.",
            choices=COMPRESSIONS,
            listed=False,
        ),
    )
    shard: tuple[int, int] = field(
        default=(1, 1), metadata=_told("Compute share I of N, as for task I of a SLURM array of N.")
    )
    jobs: int | None = field(
        default=None,
        metadata=_told(
            "Worker processes.  [default: one a core or GPU, if there is work for them]",
            range=_POSITIVE,
        ),
    )
    trust_code: str | None = None
    cluster: str | None = field(
        default=None,
        metadata=_told(
            "Ray cluster to compute on: HOST:PORT of its head, or auto for the one that "
            "RAY_ADDRESS names, else one on this machine.  [default: none]"
        ),
    )

    def __post_init__(self) -> None:
        for name, option in options().items():
            flag, value = "--" + name.replace("_", "-"), getattr(self, name)
            if option.choices and value not in option.choices:
                raise OptionError(f"{flag} {value!r}: one of {', '.join(option.choices)}")
            if (asked := option.range) is None or value is None:
                continue
            if type(value) is not int or value not in asked:
                last = asked.stop - 1
                raise OptionError(f"{flag} {value!r}: an integer from {asked.start} to {last}")
        i, n = self.shard
        if not (type(i) is type(n) is int and 1 <= i <= n <= LARGEST):
            raise OptionError(f"--shard {i}/{n}: write I/N with 1 <= I <= N")
        if self.cluster is not None and (self.jobs is not None or n > 1):
            raise OptionError("--cluster gives every device a worker: leave out --jobs and --shard")
        if self.overlap == "share" and self.center:
            raise OptionError("--overlap share: windows of --center lie anywhere; leave it out")
        if self.center and self.regions is None:
            raise OptionError("--center needs --regions: one window is centered on each BED record")
        if self.regions is not None and not self.regions.is_file():
            raise RegionError(f"--regions {self.regions}: no such file, or no regular one")

    def to_json(self, **more: Any) -> str:
        """One line for another process, with whatever else it is to be told."""
        return json.dumps({**asdict(self), **more}, default=str)

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> RunSpec:
        """The spec that :meth:`to_json` has told, further keys left out."""
        values = {option.name: told[option.name] for option in fields(cls)}
        values["genomes"] = tuple(GenomePath(name, Path(path)) for name, path in told["genomes"])
        values["out"] = Path(told["out"])
        values["regions"] = Path(told["regions"]) if told["regions"] else None
        values["shard"] = tuple(told["shard"])
        return cls(**values)


def options() -> dict[str, Option]:
    """Options of a run by name, in the order in which they are told."""
    return {
        option.name: option.metadata["option"]
        for option in fields(RunSpec)
        if "option" in option.metadata
    }


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
