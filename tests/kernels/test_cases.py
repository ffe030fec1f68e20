"""The cases of the kernels' tests reach what they claim, and their tolerances bind."""

from __future__ import annotations

import itertools

import pytest
import torch

from genomepred.kernels.codes_conv.reference import codes_conv_reference
from genomepred.models.card import difference
from tests.kernels import cases


@pytest.mark.parametrize("axes", [cases.CODES_AXES, cases.BLOCK_AXES, cases.RESIDUAL_AXES])
def test_pairwise_reaches_every_pair(axes: dict[str, tuple[object, ...]]) -> None:
    rows = cases.pairwise(axes)
    assert rows == cases.pairwise(axes)
    for a, b in itertools.combinations(axes, 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(axes[a], axes[b]))


def test_product_reaches_every_shape() -> None:
    axes = {"length": (1, 2), "width": (3, 4), "activation": (), "next_activation": ()}
    rows = cases.product(axes)
    assert {(row["length"], row["width"]) for row in rows} == {(1, 3), (1, 4), (2, 3), (2, 4)}
    assert rows[0]["activation"] == "none"


ROW = {
    **{"kind": cases.KINDS[0], "length": 129, "channels": 17, "pool": "none", "samples": 3},
    **{"activation": "gelu", "next_activation": "none", "width": 10, "padding": "same"},
    **{"layout": "windows", "base_order": "ACGT", "n_policy": "ones"},
}


@pytest.mark.parametrize("rounding", [torch.float16, torch.bfloat16])
def test_a_tolerance_refuses_the_next_coarser_type(rounding: torch.dtype) -> None:
    """Weights rounded once to float16 must not pass as float32, nor bfloat16 as float16."""
    problem = cases.codes_problem(ROW)
    arguments = dict(problem.arguments)
    arguments["table"] = arguments["table"].to(rounding).float()
    found = difference(codes_conv_reference(**arguments), problem.expected[0])
    finer = torch.float32 if rounding == torch.float16 else torch.float16
    assert found > cases.TOLERANCES[finer]


def test_missing_and_extra_values_are_refused() -> None:
    problem = cases.codes_problem(ROW)
    outs = problem.poisoned()
    with pytest.raises(AssertionError):
        problem.check(outs)
    outs[0].copy_(problem.expected[0])
    problem.check(outs)
    problem.check_untouched(outs)
    assert outs[0]._base is not None
    outs[0]._base[-1, -1, -1] = 0
    with pytest.raises(AssertionError):
        problem.check_untouched(outs)
