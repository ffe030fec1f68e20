"""Run trained sequence-to-function models over thousands of genomes.

Public names are loaded on first use, so that importing the package (and ``genomepred --help``)
imports neither torch nor numba.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genomepred.compiled import keep_numba

if TYPE_CHECKING:
    from genomepred.inference.predictor import Predictor
    from genomepred.models.card import Card, Track
    from genomepred.models.checkpoint import load_model
    from genomepred.runs.cohort import predict_cohort
    from genomepred.runs.run import predict
    from genomepred.sequences.fasta import Genome
    from genomepred.sequences.grid import Grid
    from genomepred.store.cohort import CohortStore
    from genomepred.store.reader import PredictionStore
    from genomepred.tables.compare import compare
    from genomepred.tables.sites import find_sites
    from genomepred.tables.table import region_table
    from genomepred.variants.run import effects

__version__ = "0.1.0"
__all__ = [
    "Card",
    "CohortStore",
    "Genome",
    "Grid",
    "PredictionStore",
    "Predictor",
    "Track",
    "compare",
    "effects",
    "find_sites",
    "load_model",
    "predict",
    "predict_cohort",
    "region_table",
]

_HOMES = {
    "Card": "genomepred.models.card",
    "CohortStore": "genomepred.store.cohort",
    "Genome": "genomepred.sequences.fasta",
    "Grid": "genomepred.sequences.grid",
    "PredictionStore": "genomepred.store.reader",
    "Predictor": "genomepred.inference.predictor",
    "Track": "genomepred.models.card",
    "effects": "genomepred.variants.run",
    "compare": "genomepred.tables.compare",
    "find_sites": "genomepred.tables.sites",
    "load_model": "genomepred.models.checkpoint",
    "predict": "genomepred.runs.run",
    "predict_cohort": "genomepred.runs.cohort",
    "region_table": "genomepred.tables.table",
}


def _find_folders_beside() -> None:
    """Let ``genomepred.kernels`` and ``genomepred.benchmarks`` be imported from a checkout.

    There the folders stand beside this one; a wheel carries them as subpackages. A finder of these
    two names, and no longer search path: ``genomepred.genomepred`` would be found along that too.
    """
    here = Path(__file__).parent
    folders = {f"{__name__}.{name}": here.parent / name for name in ("kernels", "benchmarks")}
    missing = {
        name: str(folder / "__init__.py")
        for name, folder in folders.items()
        if not (here / folder.name).exists() and (folder / "__init__.py").is_file()
    }

    class Beside:
        @staticmethod
        def find_spec(name: str, *_: object) -> ModuleSpec | None:
            return spec_from_file_location(name, missing[name]) if name in missing else None

    if missing:
        # Before the finder of another checkout, if one is installed.
        sys.meta_path.insert(0, Beside())


_find_folders_beside()
keep_numba(str(Path(__file__).parent))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
