"""Region tables as files: TSV, Parquet, HDF5 and AnnData's .h5ad, a group of regions at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from genomepred.errors import OutputError, optional
from genomepred.files import publishing, refuse_inputs, require_space
from genomepred.store.export import one_a_track, text_output, texts_of
from genomepred.store.hdf5 import new_file
from genomepred.tables.table import RegionTable, unique_names
from genomepred.tsv import quoted, tab_separated

FORMAT, FORMAT_VERSION = "genomepred table", 1
# Values that are texts at a time, some 200 bytes each.
_TEXTS = 1 << 16
_SUFFIXES = (".tsv", ".tsv.gz", ".parquet", ".h5", ".hdf5", ".h5ad")
_CHUNK = 1 << 16  # values of a chunk of HDF5
_MOST_FILES = 200  # of a table, open together


def write_table(table: RegionTable, path: Path | None, progress: bool = False) -> list[Path]:
    """Write a table in the format that the output's name says.

    Parameters
    ----------
    table : RegionTable
    path : Path or None
        ``.tsv``, ``.tsv.gz`` or ``.parquet``: of several tracks, each puts its name before the
        suffix; ``.h5`` (``.hdf5``) or ``.h5ad``: all tracks in one file. None: TSV of the only
        track to standard output.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    OutputError
        If the suffix is none of these, or the file cannot be written; nothing is left behind.
    DependencyError
        If Parquet is asked for and pyarrow is not installed.
    StoreError
        If there are several tracks for standard output.
    """
    if path is None:
        table.column(None)
        _write_tsv(table, [None], progress)
        return []
    suffix = next((s for s in sorted(_SUFFIXES, key=len)[::-1] if path.name.endswith(s)), None)
    if suffix is None:
        raise OutputError(f"{path}: name the table {', '.join(f'*{s}' for s in _SUFFIXES)}")
    if suffix in (".h5", ".hdf5", ".h5ad"):
        refuse_inputs(path, table.inputs)
        with publishing(path, follow=True) as temporary:
            require_space(path.parent, _most_bytes(table, suffix))
            if suffix == ".h5ad":
                with new_file(temporary, begin=partial(_begin_h5ad, table)) as file:
                    _write_h5ad(table, file, progress)
            else:
                with new_file(temporary) as file:
                    _write_hdf5(table, file, progress)
        return [path]
    files = _outputs(path, suffix, table.tracks)
    for file in files:
        refuse_inputs(file, table.inputs)
    writer: Callable[..., None] = _write_parquet if suffix == ".parquet" else _write_tsv
    writer(table, files, progress)
    return files


def _most_bytes(table: RegionTable, suffix: str) -> int:
    """Bytes that a file of HDF5 has at most: its values if they do not compress, and its names."""
    matrices = len(table.tracks) + (suffix == ".h5ad")
    names = sum(len(name) + 200 for name in [*table.names, *table.samples])
    return 4 * matrices * len(table.names) * len(table.samples) + 2 * names


def _outputs(path: Path, suffix: str, tracks: Sequence[str]) -> list[Path]:
    if len(tracks) == 1:
        return [path]
    if len(tracks) > _MOST_FILES:
        raise OutputError(
            f"{path}: {len(tracks):,} tracks make a file each, at most {_MOST_FILES} at a time; "
            "choose some with --track, or write .h5 or .h5ad, which hold all"
        )
    return one_a_track(path, suffix, tracks)


def _write_tsv(table: RegionTable, files: Sequence[Path | None], progress: bool) -> None:
    places = table.place_columns()
    header = tab_separated(["name", *places, *table.samples])
    with ExitStack() as stack:
        outputs = [stack.enter_context(text_output(path)) for path in files]
        for output in outputs:
            output.write(f"{header}\n".encode())
        for first, values in table.groups(progress):
            chosen = slice(first, first + len(values))
            columns = [table.names[chosen], *(column[chosen] for column in places.values())]
            left = ["\t".join(map(quoted, row)) for row in zip(*columns, strict=True)]
            step = max(_TEXTS // max(values.shape[1], 1), 1)
            for k, output in enumerate(outputs):
                for at in range(0, len(values), step):
                    rows = texts_of(values[at : at + step, :, k]).tolist()
                    texts = zip(left[at : at + step], rows, strict=True)
                    lines = ("\t".join([a, *b]) + "\n" for a, b in texts)
                    output.write("".join(lines).encode())


def _write_parquet(table: RegionTable, files: Sequence[Path], progress: bool) -> None:
    with optional("Parquet", "tables"):
        import pyarrow as pa
        from pyarrow import parquet
    names = pa.array(table.names, pa.string())
    places = {key: pa.array(column) for key, column in table.place_columns().items()}
    left = {"name": names, **places}
    schema = pa.schema(
        [(key, column.type) for key, column in left.items()]
        + [(sample, pa.float32()) for sample in table.samples]
    )
    with ExitStack() as stack:
        writers = []
        for path in files:
            temporary = stack.enter_context(publishing(path, follow=True))
            file = stack.enter_context(open(temporary, "xb"))
            writers.append(stack.enter_context(parquet.ParquetWriter(file, schema)))
        for first, values in table.groups(progress):
            own = [column.slice(first, len(values)) for column in left.values()]
            for k, writer in enumerate(writers):
                columns = [pa.array(np.ascontiguousarray(c)) for c in values[:, :, k].T]
                writer.write_table(pa.Table.from_arrays(own + columns, schema=schema))


def _write_hdf5(table: RegionTable, file: h5py.File, progress: bool) -> None:
    file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, statistic=table.statistic.name)
    if table.statistic.name == "fraction":
        file.attrs["threshold"] = table.statistic.threshold
    regions = {"name": table.names, **table.place_columns()}
    for group, columns in (
        ("regions", regions),
        ("samples", {"name": table.samples}),
        ("tracks", {"name": list(table.tracks)}),
    ):
        for name, column in columns.items():
            values = _fixed(column) if isinstance(column[0], str) else np.array(column, np.int64)
            file.create_dataset(f"{group}/{name}", data=values)
    shape = len(table.names), len(table.samples), len(table.tracks)
    chunk = max(_CHUNK // (shape[1] * shape[2]), 1), *shape[1:]
    data = _matrix(file, "values", shape, tuple(map(min, chunk, shape)))
    for first, values in table.groups(progress):
        data[first : first + len(values)] = values


def _fixed(texts: Sequence[str]) -> Any:
    """Texts of a fixed length, in UTF-8."""
    data = [text.encode() for text in texts]
    width = max(map(len, data)) or 1
    return np.array(data, h5py.string_dtype("utf-8", width))


def _matrix(group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Any:
    return group.create_dataset(
        name,
        shape,
        np.float32,
        chunks=chunks,
        shuffle=True,
        compression="gzip",
        compression_opts=4,
        fillvalue=np.nan,
    )


def _begin_h5ad(table: RegionTable, file: h5py.File) -> None:
    """Write all but the values of AnnData's format 0.1.0, as its documentation describes it."""
    _encode(file, "anndata", "0.1.0")
    _write_index(file, "obs", table.samples, {})
    columns = {"name": table.names, **table.place_columns()}
    _write_index(file, "var", unique_names(table.names), columns)
    for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
        _encode(file.create_group(name), "dict", "0.1.0")
    uns: dict[str, Any] = {"statistic": table.statistic.name}
    if table.statistic.name == "fraction":
        uns["threshold"] = table.statistic.threshold
    for name, value in uns.items():
        kind = "string" if isinstance(value, str) else "numeric-scalar"
        file["uns"][name] = value
        _encode(file["uns"][name], kind, "0.2.0")
    shape = len(table.samples), len(table.names)
    chunks = min(shape[0], 1024), min(shape[1], max(_CHUNK // min(shape[0], 1024), 1))
    matrices = [_matrix(file["layers"], name, shape, chunks) for name in _layers(table)]
    matrices.append(_matrix(file, "X", shape, chunks))
    for matrix in matrices:
        _encode(matrix, "array", "0.2.0")


def _write_h5ad(table: RegionTable, file: h5py.File, progress: bool) -> None:
    matrices = [file["layers"][name] for name in _layers(table)]
    for first, values in table.groups(progress):
        for matrix, k in zip([*matrices, file["X"]], [*range(len(matrices)), 0], strict=True):
            matrix[:, first : first + len(values)] = values[:, :, k].T


def _layers(table: RegionTable) -> list[str]:
    """Names of the tracks' matrices."""
    return unique_names([track.replace("/", "_") for track in table.tracks])


def _encode(item: Any, kind: str, version: str) -> None:
    item.attrs["encoding-type"], item.attrs["encoding-version"] = kind, version


def _write_index(
    file: h5py.File, name: str, index: Sequence[str], columns: dict[str, list[Any]]
) -> None:
    group = file.create_group(name)
    _encode(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs.create("column-order", list(columns), dtype=h5py.string_dtype())
    for key, column in {"_index": list(index), **columns}.items():
        is_text = isinstance(column[0], str)
        kind = h5py.string_dtype() if is_text else np.dtype(np.int64)
        group.create_dataset(key, data=np.array(column, object if is_text else kind), dtype=kind)
        _encode(group[key], "string-array" if is_text else "array", "0.2.0")
