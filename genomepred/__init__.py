"""Run trained sequence-to-function models over thousands of genomes.

Public names are loaded on first use, so that importing the package (and ``genomepred --help``)
imports neither torch nor numba.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genomepred.compiled import keep_numba

if TYPE_CHECKING:
    from genomepred.models.checkpoint import load_model
    from genomepred.runs.cohort import predict_cohort
    from genomepred.runs.run import predict
    from genomepred.sequences.fasta import Genome
    from genomepred.sequences.grid import Grid
    from genomepred.store.cohort import CohortStore
    from genomepred.store.hdf5 import PredictionStore

__version__ = "0.1.0"
__all__ = [
    "CohortStore",
    "Genome",
    "Grid",
    "PredictionStore",
    "load_model",
    "predict",
    "predict_cohort",
]

_HOMES = {
    "CohortStore": "genomepred.store.cohort",
    "Genome": "genomepred.sequences.fasta",
    "Grid": "genomepred.sequences.grid",
    "PredictionStore": "genomepred.store.hdf5",
    "load_model": "genomepred.models.checkpoint",
    "predict": "genomepred.runs.run",
    "predict_cohort": "genomepred.runs.cohort",
}

# In a checkout the folder kernels/ stands beside this one; a wheel carries it as a subpackage.
# Extending the search path makes `genomepred.kernels` the same module in both.
_checkout = Path(__file__).parent.parent
if not (Path(__file__).parent / "kernels").exists() and (_checkout / "kernels").is_dir():
    __path__.append(str(_checkout))


keep_numba(str(Path(__file__).parent))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
