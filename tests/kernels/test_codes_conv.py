"""The first layer from codes: its definition, its CPU implementation, its registration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from genomepred.kernels.codes_conv import cpu
from genomepred.kernels.codes_conv.op import _operation, codes_conv
from genomepred.kernels.codes_conv.reference import codes_conv_reference, codes_table
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.models.layers import MaxPool, OneHot, SameConv1d
from tests.kernels import cases

TENSOR = torch.randn(4, 5, 3)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("row", cases.pairwise(cases.CODES_AXES), ids=cases.label)
def test_cpu_agrees_with_reference(row: cases.Row) -> None:
    problem = cases.codes_problem(row)
    problem.check([codes_conv(**problem.arguments)])


@pytest.mark.parametrize("n_policy", ["zeros", "ones", "uniform"])
@pytest.mark.parametrize("base_order", ["ACGT", "GTCA"])
@pytest.mark.parametrize("round_up", [False, True])
def test_reference_is_one_hot_and_convolution(
    n_policy: str, base_order: str, round_up: bool
) -> None:
    """Against the modules that models are made of."""
    torch.manual_seed(0)
    conv = SameConv1d(4, 7, 10).double()
    codes = torch.randint(0, 7, (3, 41), dtype=torch.uint8)
    one_hot = OneHot(base_order, n_policy)(codes).double()
    with torch.no_grad():
        expected = MaxPool(2, round_up)(nn.GELU()(conv(one_hot))).transpose(1, 2)
        table = codes_table(conv.weight, base_order, n_policy)
        assert conv.bias is not None
        pool = "ceil" if round_up else "floor"
        out = codes_conv_reference(codes, table, conv.bias, conv.sides, Epilogue("gelu", pool=pool))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_every_size_of_group_agrees(size: int) -> None:
    problem = cases.codes_problem(
        {
            **{"kind": cases.KINDS[0], "length": 151, "channels": 120, "pool": "ceil"},
            **{"samples": 3, "activation": "gelu", "next_activation": "relu", "width": 11},
            **{"padding": "same", "layout": "windows", "base_order": "ACGT", "n_policy": "ones"},
        }
    )
    out = torch.full(problem.expected[0].shape, float("nan"))
    packed = cpu.pack_codes(problem.arguments["table"], problem.arguments["shift"], size)
    given = (problem.arguments[name] for name in ("codes", "padding", "epilogue"))
    codes, padding, epilogue = given
    for _ in range(2):
        packed(codes, None, padding, epilogue, [out])
        problem.check([out])


def test_a_group_never_outgrows_its_table() -> None:
    for taps in range(1, 40):
        for channels in (1, 8, 64, 120, 512, 2048):
            size = cpu.pack_codes(torch.zeros(taps, 5, channels), torch.zeros(channels)).size
            assert 1 <= size <= taps
            assert size == 1 or cpu.SYMBOLS**size * 4 * channels <= cpu.TABLE_BYTES


def test_a_value_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 5, (40, 100), dtype=torch.uint8)
    table, shift = torch.randn(10, 5, 64), torch.randn(64)
    arguments = (table, shift, (4, 5), Epilogue("gelu_tanh", pool="floor"))
    together = codes_conv(codes, *arguments)
    alone = torch.cat([codes_conv(row[None], *arguments) for row in codes])
    assert torch.equal(together, alone)


def test_nan_and_infinity_stay_visible() -> None:
    codes = torch.zeros(1, 9, dtype=torch.uint8)
    shift = torch.tensor([0.0, float("nan"), float("inf")])
    for pool in ("none", "floor", "ceil"):
        for activation in ("none", "relu", "gelu", "gelu_tanh"):
            out = codes_conv(codes, TENSOR, shift, (1, 2), Epilogue(activation, pool=pool))
            assert out[..., 0].isfinite().all()
            assert out[..., 1].isnan().all()
            assert out[..., 2].isposinf().all()


@pytest.mark.parametrize("pool", ["none", "ceil"])
def test_registration(pool: str) -> None:
    codes = torch.randint(0, 5, (2, 9), dtype=torch.uint8)
    epilogue = Epilogue("gelu", pool=pool)
    torch.library.opcheck(_operation, (codes, TENSOR, torch.randn(3), (1, 2), *epilogue))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.zeros(2, 9)}, r"codes must be uint8 \[N, L\], found torch.float32"),
        ({"table": torch.zeros(4, 4, 3)}, r"table must be \[K, 5, C\]"),
        ({"table": torch.zeros(5, 4, 3).transpose(0, 1)}, "table must be contiguous"),
        ({"shift": torch.zeros(4)}, r"shift must be contiguous float32 \[3\], found"),
        ({"padding": (1, -1)}, "padding must be two numbers from 0"),
        ({"codes": torch.zeros(2, 2, dtype=torch.uint8), "padding": (0, 0)}, "fewer than the 4"),
        ({"epilogue": Epilogue("tanh")}, "activation 'tanh' is none of none, relu"),
        ({"epilogue": Epilogue(pool="mean")}, "pool 'mean' is none of none, floor, ceil"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    codes = torch.zeros(2, 9, dtype=torch.uint8)
    arguments = {"codes": codes, "table": TENSOR, "shift": torch.zeros(3), "padding": (1, 2)}
    with pytest.raises(ValueError, match=message):
        codes_conv(**arguments | changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 4, 5), "ACGU"), "base order 'ACGU' is not a permutation"),
        ((torch.zeros(3, 4, 5), "ACGT", "half"), "N policy 'half' is none of zeros"),
        ((torch.zeros(3, 5, 4),), r"weight must be \[C, 4, K\], found \[3, 5, 4\]"),
    ],
)
def test_a_table_of_nonsense_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codes_table(*arguments)
