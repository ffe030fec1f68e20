"""Structure of the package, read from its source: no circle, layers, short functions."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import FIRST

ROOT = Path(__file__).parents[2]
HOMES = {
    "genomepred": ROOT / "genomepred",
    "genomepred.kernels": ROOT / "kernels",
    "genomepred.benchmarks": ROOT / "benchmarks",
}
# Lines of a body, without signature and docstring. What is longer is listed with what it has, so
# that it can only shrink.
LONGEST, NINETIETH = 60, 20
# Layers that stand on each other: a module imports from those before its own, and from its own.
# Others (training, explain, variants, tables, view) stand beside runs.
FLOW = ("sequences", "models", "lowering", "inference", "runs")
MAY_IMPORT_KERNELS = (
    "genomepred.lowering",
    "genomepred.cli.doctor",
    "genomepred.benchmarks",
    "genomepred.kernels",
)
# The signature of a run on a GPU names its version; kernels are in files of that name.
MAY_IMPORT_TRITON = ("genomepred.benchmarks", "genomepred.runs.setup")


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by name."""
    found = {}
    for package, home in HOMES.items():
        for path in sorted(home.rglob("*.py")):
            inner = path.relative_to(home).with_suffix("").parts
            name = ".".join([package, *(part for part in inner if part != "__init__")])
            found[name] = ast.parse(path.read_text("utf-8"))
    return found


def imports(tree: ast.AST, everything: bool) -> Iterator[str]:
    """Modules that are imported; unless all are wanted, only those that importing it imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else str(node.module)
        elif _is_for_types(node):
            continue
        elif everything or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, everything)


@cache
def imports_of(name: str, everything: bool) -> frozenset[str]:
    """Modules that a module of the package imports; see :func:`imports`."""
    return frozenset(imports(modules()[name], everything))


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Every circle that is met first on a walk in depth."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> Iterator[list[str]]:
        if name in path:
            yield [*path[path.index(name) :], name]
        elif name not in done:
            for other in sorted(graph[name]):
                yield from walk(other, [*path, name])
            done.add(name)

    for name in graph:
        yield from walk(name, [])


def test_a_circle_is_found():
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == [["b", "c", "b"]]
    assert list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def test_no_import_circle():
    graph = {
        name: {other for other in imports_of(name, everything=False) if other in modules()}
        for name in modules()
    }
    assert list(circles(graph)) == []


def offenders(imported: str, allowed: tuple[str, ...]) -> list[str]:
    """Modules outside of the allowed ones that import something, anywhere in them."""
    return sorted(
        f"{name} imports {other}"
        for name in modules()
        if not name.startswith(allowed)
        for other in imports_of(name, everything=True)
        if (other + ".").startswith(imported + ".")
    )


def test_nothing_imports_the_command_line():
    # A benchmark run as a script is a command.
    allowed = ("genomepred.cli", "genomepred.__main__", "genomepred.benchmarks")
    assert offenders("genomepred.cli", allowed) == []


def test_only_the_command_line_imports_click():
    assert offenders("click", ("genomepred.cli", "genomepred.demo", "genomepred.benchmarks")) == []


def test_only_lowering_imports_kernels():
    assert offenders("genomepred.kernels", MAY_IMPORT_KERNELS) == []


def test_only_kernels_of_a_gpu_import_triton():
    found = [o for o in offenders("triton", MAY_IMPORT_TRITON) if ".triton imports" not in o]
    assert found == []


@pytest.mark.parametrize("layer", FLOW)
def test_data_flows_downward(layer: str):
    later = FLOW[FLOW.index(layer) + 1 :]
    found = [
        f"{name} imports {other}"
        for name in modules()
        if name.startswith(f"genomepred.{layer}")
        for other in imports_of(name, everything=True)
        if other.startswith(tuple(f"genomepred.{upper}" for upper in later))
    ]
    assert sorted(found) == []


def bodies() -> Iterator[tuple[str, int]]:
    """Every function of the package, and the lines of its body."""
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
                yield f"{module}.{node.name}", lines


def test_functions_are_short():
    found = dict(bodies())
    longer = {name: lines for name, lines in found.items() if lines > LONGEST}
    assert longer == {}
    assert statistics.quantiles(found.values(), n=10)[-1] <= NINETIETH


def test_files_of_tests_that_come_first_exist():
    assert [name for name in FIRST if not (ROOT / "tests" / name).is_file()] == []
