"""CPU implementations beyond their definitions: tiles, tails, layouts, the same bits anywhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.kernels.conv_block.reference import conv_block_reference
from genomepred.kernels.epilogue import cpu as epilogue_cpu
from genomepred.kernels.epilogue.reference import ACTIVATIONS, POOLS, Epilogue, activate
from genomepred.models.card import difference
from tests.helpers import examples
from tests.kernels import cases, cpu

ROOT = Path(__file__).parents[2]
FP32 = {"kind": cases.KINDS[0]}
EPILOGUE = Epilogue("gelu_tanh")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def guarded(shape: torch.Size) -> torch.Tensor:
    """Contiguous NaN within a larger tensor of NaN."""
    return cases.packed(torch.full(shape, float("nan")), torch.float32, "cpu")


def check_guard(outs: list[torch.Tensor]) -> None:
    for out in outs:
        base = out._base
        assert base is not None
        assert base.isnan().sum() == base.numel() - out.numel()


def draw_epilogue(draw: st.DrawFn) -> cases.Row:
    names = st.sampled_from(ACTIVATIONS)
    return {
        "activation": draw(names),
        "pool": draw(st.sampled_from(POOLS)),
        "next_activation": draw(names),
    }


def test_every_name_has_a_function_or_a_number_of_its_own() -> None:
    addresses = [epilogue_cpu._address(name) for name in ACTIVATIONS]
    assert len(set(addresses)) == len(ACTIVATIONS)
    assert sorted(epilogue_cpu.POOL) == sorted(POOLS)
    assert len(set(epilogue_cpu.POOL.values())) == len(POOLS)


# -- direct convolution ---------------------------------------------------------------------------


@st.composite
def block_rows(draw: st.DrawFn) -> cases.Row:
    return {
        **FP32,
        **draw_epilogue(draw),
        "length": draw(st.integers(1, 90)),
        "channels_in": draw(st.integers(1, 40)),
        "channels": draw(st.integers(1, 130)),
        "samples": draw(st.integers(1, 20)),
        "width": draw(st.integers(1, 12)),
        "dilation": draw(st.integers(1, 6)),
        "padding": draw(st.sampled_from(cases.PADDINGS)),
        "residual": draw(st.booleans()),
        "keep": draw(st.booleans()),
    }


@given(row=block_rows())
@settings(max_examples=examples(120))
def test_any_block_by_both_implementations(row: cases.Row) -> None:
    problem = cases.block_problem(row)
    arguments = dict(problem.arguments)
    problem.check(cpu.conv_block_by_onednn(**arguments))
    problem.check(cpu.conv_block(**arguments))
    packed = cpu.pack_block(*(arguments[name] for name in ("weight", "shift", "dilation")))
    outs = [guarded(expected.shape) for expected in problem.expected]
    for _ in range(2):
        x, residual, padding, epilogue = (
            arguments[name] for name in ("x", "residual", "padding", "epilogue")
        )
        assert packed(x, residual, padding, epilogue, outs) is outs
        problem.check(outs)
        check_guard(outs)


def make_block(
    length: int, channels_in: int, channels: int, width: int, samples: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(samples, length, channels_in, generator=generator)
    weight = torch.randn(width, channels_in, channels, generator=generator)
    shift = torch.randn(channels, generator=generator)
    return x, weight / (width * channels_in) ** 0.5, shift


@pytest.mark.parametrize("pool", POOLS)
def test_every_number_of_channels(pool: str) -> None:
    """Vectors of channels are computed four, two and one at a time; the last one is not full."""
    for channels in range(1, 131):
        x, weight, shift = make_block(1 + 7 * channels % 61, 3, channels, 4, 2)
        arguments = (x, weight, shift, None, (1, 2), 1, Epilogue("relu", 1.0, pool, "gelu"), True)
        found = cpu.conv_block(*arguments)
        for out, expected in zip(found, conv_block_reference(*arguments), strict=True):
            assert difference(out, expected.double()) <= 1e-5, channels


@pytest.mark.parametrize("channels", [5, 16, 40, 64, 120])
def test_every_number_of_positions(channels: int) -> None:
    """Tiles of a whole number of positions, tails, and several short samples a tile."""
    for length in range(1, 91):
        x, weight, shift = make_block(length, 8, channels, 3, 5)
        arguments = (x, weight, shift, None, (1, 1), 1, Epilogue(pool="ceil"), False)
        (out,) = cpu.conv_block(*arguments)
        (expected,) = conv_block_reference(*(a.double() if a is x else a for a in arguments))
        assert difference(out, expected.double()) <= 1e-5, length


@given(
    channels_in=st.integers(1, 40),
    channels=st.integers(1, 130),
    width=st.integers(1, 9),
    dilation=st.integers(1, 3),
    length=st.integers(1, 100),
    start=st.integers(0, 100),
    samples=st.integers(1, 9),
    step=st.integers(0, 5),
    pool=st.sampled_from(POOLS),
    activation=st.sampled_from(ACTIVATIONS),
)
@settings(max_examples=examples(80))
def test_a_value_depends_on_nothing_but_what_it_sees(
    pool: str, activation: str, step: int, samples: int, start: int, length: int, **shape: int
) -> None:
    """The same bits in a long block and in short ones that begin elsewhere, in any batch."""
    dilation = shape.pop("dilation")
    span, size = dilation * (shape["width"] - 1) + 1, 1 if pool == "none" else 2
    last = start + samples * step
    x, weight, shift = make_block(size * last + length + span, **shape)
    epilogue = Epilogue(activation, 1.3, pool, activation, 0.7)
    rest = (weight, shift, None, (0, 0), dilation, epilogue, True)
    whole = cpu.conv_block(x, *rest)
    windows = x[0, size * start :].as_strided(
        (samples, length + span - 1, x.shape[2]), (size * step * x.shape[2], x.shape[2], 1)
    )
    together = cpu.conv_block(windows, *rest)
    for i in range(samples):
        alone = cpu.conv_block(windows[i : i + 1], *rest)
        for everything, batch, one in zip(whole, together, alone, strict=True):
            count, first = length // size, start + i * step
            assert torch.equal(batch[i], one[0])
            assert torch.equal(one[0, :count], everything[0, first : first + count])


@pytest.mark.parametrize(
    ("width", "channels_in", "channels"),
    [(1, 1, 8), (5, 64, 24), (601, 64, 32), (1, 12_800, 128), (3, 1025, 17), (2, 30_000, 8)],
)
def test_rounding_does_not_grow_with_taps_and_channels(
    width: int, channels_in: int, channels: int
) -> None:
    """As one sum the largest of these are 1.1e-5 off; in parts none was more than 1.9e-6."""
    x, weight, shift = make_block(width + 39, channels_in, channels, width)
    arguments = (weight, shift, None, (0, 0), 1)
    (found,) = cpu.conv_block(x, *arguments, Epilogue(), False)
    (expected,) = conv_block_reference(x.double(), *(weight.double(), *arguments[1:]))
    assert difference(found, expected) <= 4e-6
    (found,) = cpu.conv_block(x, weight[:1], *arguments[1:], Epilogue(), False)
    expected = torch.nn.functional.linear(x.double(), weight[0].double().T, shift.double())
    assert difference(found, expected) <= 4e-6


def test_padding_is_zeros_to_the_bit() -> None:
    x, weight, shift = make_block(37, 8, 24, 6, 3)
    padded = torch.nn.functional.pad(x, (0, 0, 9, 4))
    (inside,) = cpu.conv_block(x, weight, shift, None, (9, 4), 1, EPILOGUE, False)
    (outside,) = cpu.conv_block(padded, weight, shift, None, (0, 0), 1, EPILOGUE, False)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("channels", [1, 9, 31, 64])
def test_nan_and_infinity_reach_what_sees_them_and_nothing_else(
    channels: int, pool: str, activation: str
) -> None:
    for value in torch.tensor([float("nan"), float("inf")]):
        x, weight, shift = make_block(61, 4, channels, 3, 2)
        weight = weight.abs() + 0.1
        x[1, 30, 2] = value
        (out,) = cpu.conv_block(
            *(x, weight, shift, None, (1, 1), 1, Epilogue(activation, 1.0, pool, "relu"), False)
        )
        size = 1 if pool == "none" else 2
        seen = torch.zeros(out.shape[1], dtype=torch.bool)
        seen[29 // size : 31 // size + 1] = True
        assert out[0].isfinite().all()
        assert out[1, ~seen].isfinite().all()
        hit = out[1, seen].isnan() if value.isnan() else out[1, seen].isposinf()
        assert hit.all()


def test_nan_of_a_residual_stays() -> None:
    x, weight, shift = make_block(10, 4, 20, 1)
    residual = torch.zeros(1, 10, 20)
    residual[0, 3, 17], residual[0, 4, 2] = float("nan"), float("nan")
    out, kept = cpu.conv_block(
        *(x, weight, shift, residual, (0, 0), 1, Epilogue("relu", 1.0, "floor", "gelu_tanh"), True)
    )
    for found in (out, kept):
        assert found.isnan().nonzero().tolist() == [[0, 1, 17], [0, 2, 2]]


def test_an_empty_batch() -> None:
    x, weight, shift = make_block(10, 4, 20, 3)
    (out,) = cpu.conv_block(x[:0], weight, shift, None, (1, 1), 1, EPILOGUE, False)
    assert out.shape == (0, 10, 20)


# -- codes ----------------------------------------------------------------------------------------


@st.composite
def codes_rows(draw: st.DrawFn) -> cases.Row:
    return {
        **FP32,
        **draw_epilogue(draw),
        "length": draw(st.integers(1, 90)),
        "channels": draw(st.integers(1, 130)),
        "samples": draw(st.integers(1, 3)),
        "width": draw(st.integers(1, 17)),
        "padding": draw(st.sampled_from(cases.PADDINGS)),
        "layout": draw(st.sampled_from(cases.CODES_AXES["layout"])),
        "base_order": "GATC",
        "n_policy": draw(st.sampled_from(["zeros", "ones", "uniform"])),
    }


@given(row=codes_rows())
@settings(max_examples=examples(80))
def test_any_first_layer_fills_its_output_and_nothing_beside(row: cases.Row) -> None:
    problem = cases.codes_problem(row)
    out = guarded(problem.expected[0].shape)
    cpu.codes_conv(**problem.arguments, out=out)
    problem.check([out])
    check_guard([out])


@given(
    channels=st.integers(1, 130),
    width=st.integers(1, 17),
    length=st.integers(1, 100),
    start=st.integers(0, 100),
    step=st.integers(0, 7),
    pool=st.sampled_from(POOLS),
    activation=st.sampled_from(ACTIVATIONS),
)
@settings(max_examples=examples(80))
def test_a_value_of_a_first_layer_depends_on_nothing_but_what_it_sees(
    channels: int, width: int, length: int, start: int, step: int, pool: str, activation: str
) -> None:
    size, samples = 1 if pool == "none" else 2, 4
    generator = torch.Generator().manual_seed(channels)
    codes = torch.randint(0, 256, (1, size * (start + samples * step) + length + width))
    codes = codes.clamp(max=255).to(torch.uint8) % 7
    table = torch.randn(width, 5, channels, generator=generator)
    shift = torch.randn(channels, generator=generator)
    block = (table, shift, (0, 0), Epilogue(activation, 1.3, pool, "relu"))

    def convolve(codes: torch.Tensor) -> torch.Tensor:
        count = codes.shape[1] - width + 1
        positions = {"none": count, "floor": count // 2, "ceil": -(-count // 2)}[pool]
        out = torch.full((len(codes), positions, channels), float("nan"))
        cpu.codes_conv(codes, *block, out=out)
        return out

    whole = convolve(codes)
    windows = codes[0, size * start :].as_strided((samples, length + width - 1), (size * step, 1))
    together, count = convolve(windows), length // size
    for i in range(samples):
        first = start + i * step
        assert torch.equal(together[i, :count], whole[0, first : first + count])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_first_layer_of_half_precision_is_the_rounded_one(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 5, (3, 40), generator=generator).to(torch.uint8)
    table = torch.randn(9, 5, 20, generator=generator).to(dtype)
    shift = torch.randn(20, generator=generator)
    half = torch.full((3, 20, 20), float("nan"), dtype=dtype)
    exact = torch.full((3, 20, 20), float("nan"))
    for out, rows in ((half, table), (exact, table.float())):
        cpu.codes_conv(codes, rows, shift, (4, 4), Epilogue("gelu", pool="floor"), out)
    assert torch.equal(half, exact.to(dtype))


# -- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("factor", [1.702, 0.0, -0.5, 40.0])
def test_activations_from_tiny_to_huge(activation: str, factor: float) -> None:
    tiny = torch.logspace(-30, 6, 500)
    x = torch.cat([-tiny, torch.linspace(-12, 12, 4001), torch.zeros(1), tiny]).view(1, -1, 1)
    (found,) = cpu.bias_act_pool(x, torch.zeros(1), None, Epilogue(activation, factor), False)
    expected: Any = activate(x.double(), activation, factor)
    assert difference(found, expected) <= 1e-5


# -- processors -----------------------------------------------------------------------------------


def fingerprint() -> str:
    """SHA-256 of results of both kernels: all activations and pools, full and part vectors."""
    torch.set_num_threads(1)
    digest = hashlib.sha256()
    codes = torch.arange(3 * 151).mul(7).remainder(11).clamp(max=5).to(torch.uint8).view(3, 151)
    for channels in (1, 9, 24, 40, 64, 120):
        x, weight, shift = make_block(63, 5, channels, 4, 3)
        table = torch.randn(7, 5, channels, generator=torch.Generator().manual_seed(channels))
        for activation in ACTIVATIONS:
            for pool in POOLS:
                epilogue = Epilogue(activation, 1.3, pool, activation, 0.7)
                outs = cpu.conv_block(x, weight, shift, None, (2, 1), 1, epilogue, True)
                length = {"none": 151, "floor": 75, "ceil": 76}[pool]
                out = torch.full((3, length, channels), float("nan"))
                cpu.codes_conv(codes, table, shift, (3, 3), epilogue, out)
                for values in (*outs, out):
                    assert values.isfinite().all()
                    digest.update(values.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(cpu.WIDE != 16, reason="needs an x86-64 CPU with AVX-512")
def test_vectors_of_half_the_width_give_the_same_bits(tmp_path: Path) -> None:
    features = ("avx", "avx2", "fma", "f16c", "bmi", "bmi2", "popcnt")
    features += ("sse", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2")
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in features),
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    code = "from tests.kernels.test_cpu import cpu, fingerprint; print(cpu.WIDE, fingerprint())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["8", fingerprint()]
