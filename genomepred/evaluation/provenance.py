"""Evaluation on the files of a model's own training: its examples must not become test examples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from genomepred.data.peak_data import region_name
from genomepred.data.peak_files import is_manifest, read_manifest
from genomepred.data.peaks import ENDLESS
from genomepred.data.source import Source, file_facts
from genomepred.data.tables import TABLE, Table
from genomepred.errors import DataError
from genomepred.models.card import Card
from genomepred.sequences.grid import Region
from genomepred.sequences.names import core_of

_SHARE = re.compile(r"0?\.\d+")


def as_trained(source: Source, card: Card, seed: int | None, *, split: bool) -> Source:
    """The source with what its files were read by in a model's training, if it is the same files.

    Parameters
    ----------
    source : Source
        Its seed does not count.
    card : Card
        Of the model. A training on other files, or none, changes nothing.
    seed : int, optional
        What was asked for; by default the training's, else 0.
    split : bool
        Whether the examples are split, so that those of the training can be told.

    Returns
    -------
    Source
        Columns, ``pad``, ``validation``, ``test`` and ``seed`` are the training's where none were
        given.

    Raises
    ------
    DataError
        If the examples are split and others than in the training are asked for.
    """
    facts = card.training.get("data")
    if not isinstance(facts, dict) or not _is_trained_on(source, facts):
        return replace(source, seed=seed or 0)
    then, now = _asked_in_training(facts), {**asdict(source), "seed": seed}
    then["seed"] = card.training.get("settings", {}).get("seed", 0)
    given = [name for name in then if now[name] not in (None, ())]
    differing = [name for name in given if not _equal(now[name], then[name])]
    if "seed" in differing and not _has_share(then):
        differing.remove("seed")  # resamples and negatives may be others
    if split and differing:
        name = differing[0]
        everything = "" if "peaks" in facts else ", or take all rows with --part all"
        raise DataError(
            f"{source.data}: {_as_options(name, now[name])} was asked, but model {card.name!r} was "
            f"trained on this file with {_as_options(name, then[name])}; leave it out, so that the "
            f"parts are those of the training{everything}"
        )
    return replace(source, **{**then, **{name: now[name] for name in given}})


def _is_trained_on(source: Source, facts: Mapping[str, Any]) -> bool:
    files = facts.get("data")
    if "split" not in facts or not isinstance(files, list):
        return False  # not as trainings write it
    # Of peaks, each file is followed by its genome, which has no examples of its own.
    trained = files[::2] if "peaks" in facts else files
    paths = _files(source)
    return len(paths) == len(trained) and sorted(
        str(file["sha256"]) for file in file_facts(paths)
    ) == sorted(str(file.get("sha256")) for file in trained)


def check_held_out(facts: Mapping[str, Any], card: Card, part: str, data: Path) -> None:
    """Refuse to judge a model by regions of its training's genomes that it was not kept from.

    Parameters
    ----------
    facts : mapping
        Of the data.
    card : Card
        Of the model. A training on other genomes, or on none, allows everything.
    part : str
        ``validation``, or ``test``, which is every region where nothing is split.
    data : Path
        For messages.

    Raises
    ------
    DataError
        Naming the genome and the region.
    """
    there = card.training.get("data")
    if not isinstance(there, dict) or "peaks" not in there or "peaks" not in facts:
        return
    trained = _regions_by_genome(there, part)
    for sha256, (name, regions) in _regions_by_genome(facts, part).items():
        if sha256 not in trained:
            continue
        free = trained[sha256].regions
        for region in regions:
            if not any(_is_within(region, other) for other in free):
                held = ", ".join(map(_name, free)) or "nothing"
                raise DataError(
                    f"{data}: model {card.name!r} was trained on genome {name}, kept from {held} "
                    f"for {part}; {_name(region)} was asked, which would put training examples "
                    f"into the {part}: ask for regions within what it was kept from"
                )


class _Genome(NamedTuple):
    name: str
    regions: list[Region]


def _regions_by_genome(facts: Mapping[str, Any], part: str) -> dict[str, _Genome]:
    """Held-out regions of each genome of peaks, by its sha256."""
    genomes = facts["data"][1::2]
    # Cards of one genome may have the regions as they were asked for only.
    held_out = facts.get("held_out", {part: [facts["split"].get(part, [])] * len(genomes)})
    return {
        genome["sha256"]: _Genome(genome["file"], list(map(_region, regions)))
        for genome, regions in zip(genomes, held_out[part], strict=True)
    }


def _region(text: str) -> Region:
    contig, _, bounds = text.rpartition(":")
    found = re.fullmatch(r"([\d,]+)-([\d,]+)", bounds)
    if contig and found:
        first, last = (int(number.replace(",", "")) for number in found.groups())
        return Region(contig, first - 1, last)
    return Region(text, 0, ENDLESS)


def _is_within(region: Region, other: Region) -> bool:
    same = core_of(region.contig) == core_of(other.contig)
    return same and other.start <= region.start and region.end <= other.end


def _name(region: Region) -> str:
    return region.contig if region.end >= ENDLESS else region_name(region)


def _files(source: Source) -> list[Path]:
    """Files with the examples that are split."""
    if source.labels is not None:
        return [source.data, source.labels]
    if TABLE.search(source.data.name):
        table = Table(source.data)
        if is_manifest(table):
            return [one.peaks for one in read_manifest(table)]
    return [source.data]


def _asked_in_training(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a training's source that the facts of its data tell."""
    asked = {part: tuple(found) for part, found in facts["split"].items()}
    if "columns" in facts:
        asked["targets"] = tuple(facts["columns"]["labels"])
        asked |= {name: facts["columns"][name] for name in facts["columns"] if name == "sequence"}
    return asked | ({"pad": facts["pad"]} if facts.get("pad") else {})


def _has_share(asked: Mapping[str, Any]) -> bool:
    """Whether rows were drawn by the seed."""
    texts = (*asked["validation"], *asked["test"])
    return any(_SHARE.fullmatch(text) for text in texts)


def _equal(now: Any, then: Any) -> bool:
    """Whether two values of a field choose the same; several in any order."""
    return set(now) == set(then) if isinstance(then, tuple) else bool(now == then)


def _as_options(name: str, value: Any) -> str:
    option = "--" + {"targets": "target"}.get(name, name)
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{option} {one}" for one in values) or f"no {option}"
