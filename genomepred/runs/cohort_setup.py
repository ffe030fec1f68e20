"""Setup of a cohort run: what is asked, and what follows from panel and model, tiles or windows."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genomepred.errors import MemoryLimitError, ModelError, PrecisionError
from genomepred.files import make_folder, output_error, own_folder
from genomepred.inference.cohort import TILES, compute_shard, pieces
from genomepred.inference.engine import Numerics
from genomepred.inference.tile_pieces import Tally
from genomepred.inference.tiles import PAYS
from genomepred.lowering.fuse import REFERENCE, resolve_kernels
from genomepred.lowering.receptive_field import CannotShareError
from genomepred.machine import process_memory, usable_memory
from genomepred.models.card import difference
from genomepred.models.layers import SequenceModel
from genomepred.runs.cohort_work import shard_windows
from genomepred.runs.folder import CACHE, make_grid, tidy
from genomepred.runs.setup import Setup
from genomepred.runs.spec import RunSpec
from genomepred.sequences.cohort import Panel, PanelOptions
from genomepred.sequences.distinct import distinct_windows, held_bytes, leader_type
from genomepred.sequences.fasta import Genome

# Bytes that a process holds without a panel.
_MEMORY_ALONE = 500_000_000
# Haplotype windows that a guard compares.
_GUARDED = 1 << 14
# Stretches of a grid that are looked at, and windows of each.
_STRETCHES, _STRETCH = 8, 256


@dataclass(frozen=True)
class Sharing:
    """Counted work of stretches of a panel.

    Parameters
    ----------
    windows, distinct : int
        Windows of the grid that were looked at, and distinct ones of them.
    pieces : tuple of int
        Distinct left ends, tiles and right ends; empty if the model has none.
    saving : float
        How many times less multiply-adds through tiles than for distinct windows by themselves;
        0 without tiles.
    """

    windows: int
    distinct: int
    pieces: tuple[int, ...]
    saving: float

    @property
    def each(self) -> float:
        """Distinct windows a window of the grid."""
        return self.distinct / max(self.windows, 1)


class CohortSetup(Setup):
    """Model, device, reference and panel of a run, before anything is computed.

    Parameters
    ----------
    spec : RunSpec
        Of one genome, the reference.
    variants : Path
        VCF or BCF.
    options : PanelOptions
    writes : bool, optional
        Whether the output folder may be made and keep what is read of the panel.
    model : SequenceModel, optional
        A model in memory, in place of the spec's.

    Raises
    ------
    GenomepredError
        If model, reference, panel or options do not fit.
    """

    def __init__(
        self,
        spec: RunSpec,
        variants: Path,
        options: PanelOptions,
        writes: bool = True,
        model: SequenceModel | None = None,
    ) -> None:
        if len(spec.genomes) != 1:
            raise ModelError(
                f"--variants: one genome is the reference, but {len(spec.genomes)} are given"
            )
        if spec.center:
            raise ModelError(
                "--variants with --center: haplotypes share windows of the grid; leave --center "
                "out for the rows of the grid that meet the regions"
            )
        # Overlap is shared by tiles, or not at all.
        super().__init__(replace(spec, overlap="naive"), writes, model)
        self._asked = spec.overlap
        if spec.regions is not None and self.geometry.bins > 1:
            raise ModelError(
                f"--variants with --regions: {self.card.name!r} has {self.geometry.bins} bins, of "
                "which regions cut some off; leave --regions out"
            )
        cache = None
        if writes:
            tidy(spec.out)
            make_folder(spec.out)
            try:
                cache = own_folder(spec.out, CACHE)
            except OSError as error:
                raise output_error(spec.out, error) from error
        name, path = spec.genomes[0]
        self.genome = Genome(path, name=name, cache=cache, write=writes)
        self.panel = Panel(self.genome, variants, options, cache=cache)
        self.names = [self.panel.name]
        self.grid = make_grid(self.genome.contigs, self.geometry, spec.regions, False)
        self._fit_memory()
        if self.jobs is None and self.workers < self._most_workers():
            found, windows = self.sharing, self.grid.rows / self.geometry.bins
            saving = found.saving if self._pays(found) else 1.0
            self.windows = windows * found.each / spec.shard[1]
            self.workers = self._workers(saving)
            self._fit_memory()

    def _fit_memory(self) -> None:
        """Start no more processes than memory is enough for.

        Raises
        ------
        MemoryLimitError
            If it is not enough for one, or for those that are asked for.
        """
        need, haplotypes = self._memory_of_a_process(), len(self.panel.haplotypes)
        asked = self.workers if self.spec.jobs is not None else 1
        for limit, processes in ((process_memory(), 1), (usable_memory(), asked)):
            if limit.amount < processes * need:
                raise MemoryLimitError(
                    f"{self.panel.path}: {haplotypes:,} haplotypes need about {need / 1e9:,.1f} GB "
                    f"in each of {processes} processes; the limit is {limit.amount / 1e9:,.1f} GB, "
                    f"{limit.why}: raise it, use fewer --jobs, or select some --samples at a time"
                )
        self.workers = min(self.workers, usable_memory().amount // need)

    def _memory_of_a_process(self) -> int:
        """About the bytes that a process holds: the index of a shard, edits, and all else."""
        panel, g = self.panel, self.geometry
        haplotypes = len(panel.haplotypes)
        windows = min(shard_windows(haplotypes, self.layout.tracks), self.grid.rows // g.bins)
        index = haplotypes * windows * leader_type(haplotypes).itemsize
        lengths = panel.contigs.values()
        edits = panel.counts.accepted / max(sum(lengths), 1)
        held = held_bytes(haplotypes, g, max(lengths, default=0), edits)
        return _MEMORY_ALONE + index + held

    def facts(self) -> dict[str, Any]:
        """Return what of the signature follows from command, machine, reference and panel."""
        digests = {"reference": self.genome.digest(), "panel": self.panel.digest}
        facts = super().facts() | digests
        if self._asked == "auto":
            del facts["overlap"]
        elif self._asked == "share":
            facts["overlap"] = TILES
        return facts

    @cached_property
    def sharing(self) -> Sharing:
        """Count what is distinct in stretches of the grid; nothing is computed."""
        windows = self.grid.rows // self.geometry.bins
        step = max((windows - _STRETCH) // (_STRETCHES - 1), _STRETCH)
        tally = self._tally()
        looked = distinct = 0
        for first in range(0, windows, step):
            for place in pieces(self.grid, first, min(first + _STRETCH, windows)):
                if tally is not None:
                    tally.begin()
                for chunk in distinct_windows(self.panel, self.geometry, *place):
                    looked += len(chunk.begin) - 1
                    distinct += len(chunk.leader)
                    if tally is not None:
                        tally.take(chunk)
        if tally is None:
            return Sharing(looked, distinct, (), 0.0)
        saving = distinct * tally.alone / max(tally.pieces + distinct * tally.head, 1)
        return Sharing(looked, distinct, tuple(tally.counts), saving)

    def _tally(self) -> Tally | None:
        """Counts of pieces, if the model has any."""
        with suppress(CannotShareError):
            return Tally(self.model, self.geometry.stride)
        return None

    def _pays(self, found: Sharing) -> bool:
        """Whether windows are to go through tiles, as far as counting tells."""
        wanted = self._asked == "share" or (self._asked == "auto" and found.saving >= PAYS)
        return bool(found.pieces) and wanted

    def decide(self) -> tuple[Numerics, float]:
        """Choose numerics: tiles where counted work says that they pay and a guard agrees.

        Returns
        -------
        Numerics
        float
            Work of distinct windows without tiles, over that with them.

        Raises
        ------
        ModelError
            If sharing is asked for and the model has no tiles.
        PrecisionError
            If it is asked for and the guard is against it, or as for other runs.
        """
        numerics, alone = super().decide()
        if self._asked == "naive" or not self.grid.rows:
            return numerics, alone
        if not self.sharing.pieces and self._asked == "share":
            raise ModelError(
                f"--overlap share: {self.card.name!r} has no trunk whose stretches windows share, "
                "or its windows are too short; use --overlap auto or naive"
            )
        if not self._pays(self.sharing):
            return numerics, alone
        kernels = resolve_kernels(self.model, self.spec.kernels, self.device, numerics.precision)
        tiles = replace(numerics, kernels=kernels, overlap=TILES)
        differ = self._difference_of(tiles)
        allowed = self.card.tolerance[numerics.precision]
        if differ <= allowed:
            return tiles, self.sharing.saving
        why = f"tiles differ from windows alone by {differ:.2g}, allowed are {allowed:.2g}"
        if self._asked == "share":
            raise PrecisionError(f"--overlap share: {why}; use --overlap auto or naive")
        warnings.warn(f"overlap is not shared: {why}", stacklevel=2)
        return numerics, alone

    def _difference_of(self, tiles: Numerics) -> float:
        """Largest difference between a stretch through tiles and as the model is written."""
        windows = self.grid.rows // self.geometry.bins
        first = windows // 2
        last = min(first + max(_GUARDED // len(self.panel.haplotypes), 8), windows)
        plain = replace(tiles, kernels=REFERENCE, overlap="naive", precision="fp32")
        slots = self.slots(tiles.compute_batch)
        expected, found = (
            compute_shard(self.engine(how), self.panel, self.grid, first, last, slots).values
            for how in (plain, tiles)
        )
        known = ~np.isnan(expected)
        return difference(found[known], expected[known])

    def close(self) -> None:
        """Close reference and panel."""
        self.panel.close()
        self.genome.close()
