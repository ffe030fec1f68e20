from __future__ import annotations

import copy
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genomepred.kernels.epilogue.reference import convolved_length
from genomepred.lowering.blocks import FusedChain, FusedConv
from genomepred.lowering.fuse import prepare
from genomepred.lowering.receptive_field import (
    CannotShareError,
    multiply_adds,
    place_of_windows,
    trunk_of,
)
from genomepred.lowering.shared import Sharing, stretch_work
from genomepred.models import MODELS
from genomepred.models.card import difference
from genomepred.models.checkpoint import build
from genomepred.models.layers import (
    AttentionPool,
    FlattenPositions,
    MaxPool,
    Residual,
    SameConv1d,
    ScaledGELU,
    SequenceModel,
)
from tests.helpers import examples
from tests.kernels.cases import TOLERANCES


class Drawn(SequenceModel):
    """A model of any trunk and head."""

    def __init__(self, window: int, trunk: nn.Sequential, head: nn.Module) -> None:
        super().__init__(window, 2)
        self.trunk, self.head = trunk, head

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x)).unsqueeze(1)


class Largest(nn.Module):
    """A head that is neither linear nor attention."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax(dim=2)


def settle(model: SequenceModel) -> SequenceModel:
    """A model in evaluation mode whose BatchNorms do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def random_codes(count: int, seed: int = 0) -> torch.Tensor:
    """Random codes with a stretch of unknown bases."""
    codes = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(seed))
    codes[count // 3 : count // 3 + count // 10] = 4
    return codes.to(torch.uint8)


def by_window(model: SequenceModel, codes: torch.Tensor, stride: int) -> torch.Tensor:
    """The definition: every window by itself."""
    with torch.no_grad():
        return torch.cat([model(cut) for cut in codes.unfold(0, model.window, stride).split(64)])


def phases_of(model: SequenceModel, stride: int) -> int:
    """Phases that the last layer of a model, as written or prepared, distinguishes."""
    trunk = trunk_of(model, as_written=not any(isinstance(m, FusedConv) for m in model.modules()))
    return place_of_windows(model.window, stride, 1, trunk.steps).phases


def shared(model: SequenceModel, codes: torch.Tensor, stride: int, windows: int) -> torch.Tensor:
    with torch.no_grad():
        return Sharing(model, stride, windows)(codes)


@lru_cache(1)
def forms(model: SequenceModel) -> tuple[SequenceModel, SequenceModel]:
    """A model in float64, and prepared."""
    return copy.deepcopy(model).double(), prepare(model)


def compare(
    model: SequenceModel,
    stride: int,
    *,
    windows: int = 24,
    codes: torch.Tensor | None = None,
) -> None:
    """Windows that are shared equal those by themselves to 1e-5 of the output's scale."""
    windows = -(-windows // phases_of(model, stride)) * phases_of(model, stride)
    if codes is None:
        codes = random_codes((windows - 1) * stride + model.window)
    double, prepared = forms(model)
    wanted = by_window(double, codes, stride)
    found = shared(prepared, codes, stride, windows)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


# Models of the set

SETS = {
    "basenji-maize": [{"window": 600}, {"window": 333, "dilated_repeat": 1}],
    "motif-cnn": [{"window": 20, "kernel": 5}],
    "optimus5p": [{"window": 50, "filters": 16}, {"window": 54, "filters": 8, "padding": "valid"}],
    "tf-cnn": [{"window": 100, "filters": 16}, {"window": 101, "filters": 8, "blocks": 3}],
    "tf-cnn-v2": [{"window": 100, "filters": 16}],
    "tf-conv-transformer": [{"window": 60, "filters": 16}],
    "utr-attention": [{"window": 50, "filters": 16}, {"window": 99, "filters": 8, "depth": 3}],
}
CASES = [(name, config) for name, configs in SETS.items() for config in configs]


def model_of(name: str, config: dict[str, object]) -> SequenceModel:
    torch.manual_seed(0)
    return settle(build(name, tracks=2, **config))


def test_every_model_with_a_trunk_is_compared() -> None:
    without = {"linear", "nucleic-transformer"}
    assert set(SETS) | without == set(MODELS)
    for name in without:
        config = {"dim": 8, "layers": 1} if name != "linear" else {}
        with pytest.raises(CannotShareError, match="no trunk"):
            Sharing(prepare(build(name, window=40, **config)), 4, 8)


@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_shared_equals_by_window(name: str, config: dict[str, object]) -> None:
    model = model_of(name, config)
    for stride in (1, 4, 7, 10, model.window // 2, model.window - 1, model.window):
        compare(model, stride)


def test_a_stride_of_the_published_setting() -> None:
    compare(settle(build("basenji-maize")), 104, windows=16)


@pytest.mark.parametrize("fill", [0, 4])
def test_windows_of_nothing_but_one_code(fill: int) -> None:
    """As beyond a contig's ends."""
    model = model_of(*CASES[0])
    codes = torch.full((23 * 10 + model.window,), fill, dtype=torch.uint8)
    codes[300:600] = random_codes(300)
    compare(model, 10, codes=codes)


def test_the_other_strand_is_one_more_stretch() -> None:
    """Window ``i`` of the reverse complement is window ``windows - 1 - i`` of its stretch."""
    model = model_of(*CASES[0])
    stride, windows = 6, 24
    codes = random_codes((windows - 1) * stride + model.window)
    complement = torch.tensor([3, 2, 1, 0, 4], dtype=torch.uint8)
    cut = codes.unfold(0, model.window, stride)
    with torch.no_grad():
        wanted = model(complement[cut.long()].flip(1))
    found = shared(prepare(model), complement[codes.long()].flip(0), stride, windows).flip(0)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


# Random architectures


@st.composite
def local_layers(draw: st.DrawFn, channels: int) -> tuple[list[nn.Module], int]:
    """One convolution of any padding and dilation, or a pool; and its channels."""
    if draw(st.booleans()):
        return [MaxPool(draw(st.integers(1, 3)), draw(st.booleans()))], channels
    kernel, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    wider = draw(st.integers(1, 5))
    padding = draw(st.sampled_from(["module", "same", "valid", 0, 1, 2, 4]))
    if padding == "module":
        return [SameConv1d(channels, wider, kernel, dilation=dilation)], wider
    bias = draw(st.booleans())
    return [nn.Conv1d(channels, wider, kernel, 1, padding, dilation, bias=bias)], wider


@st.composite
def residuals(draw: st.DrawFn, channels: int) -> nn.Module:
    """A branch that keeps the shape."""
    inner = draw(st.integers(1, 4))
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    first: nn.Module = SameConv1d(channels, inner, kernel, dilation=dilation)
    back: nn.Module = SameConv1d(inner, channels, draw(st.integers(1, 3)))
    if draw(st.booleans()):  # the first shortens, the second lengthens
        width = dilation * (kernel - 1)
        first = nn.Conv1d(channels, inner, kernel, dilation=dilation)
        back = nn.Conv1d(inner, channels, width + 1, padding=width)
    return Residual(nn.ReLU(), first, nn.BatchNorm1d(inner), nn.GELU("tanh"), back, nn.Dropout(0.5))


POINTWISE = (ScaledGELU, nn.ReLU, lambda: nn.GELU("tanh"), nn.SiLU)


@st.composite
def models(draw: st.DrawFn) -> SequenceModel:
    torch.manual_seed(draw(st.integers(0, 1000)))
    window, channels = draw(st.integers(20, 150)), 4
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.integers(0, 3)) == 0:
            layers.append(draw(residuals(channels)))
        else:
            local, channels = draw(local_layers(channels))
            layers += local
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(channels))
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from(POINTWISE))())
    trunk = nn.Sequential(*layers)
    try:
        positions = trunk.eval()(torch.zeros(1, 4, window)).shape[2]
    except RuntimeError:  # the window is too short for these layers
        positions = 0
    assume(positions > 0)
    heads: dict[str, nn.Module] = {
        "flat": nn.Sequential(FlattenPositions(), nn.Linear(channels * positions, 2)),
        "hidden": nn.Sequential(
            *(FlattenPositions(), nn.Linear(channels * positions, 3), nn.ReLU(), nn.Linear(3, 2))
        ),
        "attention": nn.Sequential(AttentionPool(channels), nn.Linear(channels, 2)),
        "other": nn.Sequential(Largest(), nn.Linear(channels, 2)),
    }
    head = heads[draw(st.sampled_from(sorted(heads)))]
    for pool in head.modules():
        if isinstance(pool, AttentionPool):  # scores far apart, as after training
            nn.init.normal_(pool.score.weight, std=30)
    return settle(Drawn(window, trunk, head))


@settings(
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking models takes minutes
)
@given(models(), st.data())
def test_any_architecture_at_any_stride(model: SequenceModel, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, model.window))
    try:
        phases_of(model, stride)
    except CannotShareError:
        assume(False)
    compare(model, stride, windows=data.draw(st.integers(1, 12)))


def test_edges_that_meet_cannot_be_shared() -> None:
    model = settle(build("optimus5p", window=10, filters=4))
    with pytest.raises(CannotShareError, match="padding touches all positions"):
        Sharing(prepare(model), 2, 8)


def test_layers_that_are_not_known_cannot_be_shared() -> None:
    trunk = nn.Sequential(nn.Conv1d(4, 2, 3), nn.Softmax(dim=2))
    model = Drawn(20, trunk, nn.Sequential(FlattenPositions(), nn.Linear(36, 2)))
    with pytest.raises(CannotShareError, match="Softmax"):
        Sharing(prepare(model), 2, 8)


@pytest.mark.parametrize("kernels", ["torch", None])
def test_what_is_not_made_of_blocks_is_not_shared(kernels: str | None) -> None:
    model = model_of("tf-cnn", {"window": 100, "filters": 4})
    with pytest.raises(CannotShareError, match="a convolution that is none of our blocks"):
        Sharing(model if kernels is None else prepare(model, kernels), 4, 8)


def test_windows_of_a_stretch_fill_whole_phases() -> None:
    with pytest.raises(ValueError, match="no multiple of 4 phases"):
        Sharing(prepare(model_of("tf-cnn", {"window": 100, "filters": 4})), 5, 6)


# Prepared models


def by_onednn(model: SequenceModel) -> tuple[str, ...]:
    blocks = (module for module in prepare(model).modules() if isinstance(module, FusedConv))
    return tuple("kmers" if block.reads_codes else "onednn" for block in blocks)


@pytest.mark.parametrize("kernels", ["auto", "onednn"])
@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_stretches_one_after_the_other_equal_the_prepared_model_by_window(
    name: str, config: dict[str, object], kernels: str
) -> None:
    """Results of a stretch outlive the next one, whose memory is that of the first."""
    model = model_of(name, config)
    prepared = prepare(model, by_onednn(model) if kernels == "onednn" else kernels)
    for stride in (3, 6, 8, model.window // 3):
        windows = 3 * phases_of(prepared, stride)
        sharing, held = Sharing(prepared, stride, windows), []
        for seed in (0, 1, 2, 0):
            codes = random_codes(sharing.bases, seed)
            with torch.no_grad():
                held.append(sharing(codes))
            assert difference(held[-1], by_window(prepared, codes, stride)) <= 1e-5
        assert torch.equal(held[3], held[0])
        wanted = by_window(prepared, random_codes(sharing.bases, 1), stride)
        assert difference(held[1], wanted) <= 1e-5


def conv(channels_in: int, channels: int, kernel: int = 3, dilation: int = 1) -> nn.Module:
    return SameConv1d(channels_in, channels, kernel, dilation=dilation)


def drawn(window: int, *layers: nn.Module) -> SequenceModel:
    torch.manual_seed(0)
    trunk = nn.Sequential(*layers).eval()
    _, channels, positions = trunk(torch.zeros(1, 4, window)).shape
    head = nn.Sequential(FlattenPositions(), nn.Linear(channels * positions, 2))
    return settle(Drawn(window, trunk, head))


@pytest.mark.parametrize("window", [80, 83])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 6, 8, 12, 27])
def test_residuals_beside_pools_that_split_phases_or_not(window: int, stride: int) -> None:
    model = drawn(
        window,
        *(ScaledGELU(), conv(4, 9, 4), nn.BatchNorm1d(9), MaxPool(2), conv(9, 9, 2)),
        Residual(conv(9, 3, 3, 2), nn.ReLU(), conv(3, 9, 1)),
        Residual(nn.ReLU(), conv(9, 17), nn.ReLU(), conv(17, 9, 2), nn.BatchNorm1d(9)),
        *(MaxPool(2, round_up=True), nn.GELU("tanh"), conv(9, 16, 3)),
        Residual(nn.GELU("tanh"), conv(16, 16, 3), nn.GELU("tanh")),
        *(MaxPool(2), nn.ReLU(), conv(16, 3, 1)),
    )
    (chain,) = (layer for layer in prepare(model).trunk if isinstance(layer, FusedChain))
    assert [(block.keeps, block.adds, block.epilogue.pool) for block in chain.blocks] == [
        *((False, False, "floor"), (True, False, "none"), (False, False, "none")),
        *((True, True, "none"), (False, False, "none"), (False, True, "ceil")),
        *((True, False, "none"), (False, True, "floor"), (False, False, "none")),
    ]
    compare(model, stride, windows=8)


@st.composite
def fused_trunks(draw: st.DrawFn) -> SequenceModel:
    """Layers of which all are made part of blocks."""
    window, channels, layers = draw(st.integers(30, 120)), 4, []
    for _ in range(draw(st.integers(1, 6))):
        kernel, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 3))
        wider = draw(st.integers(1, 20))
        padding = draw(st.sampled_from(["same", 0, 1, 7]))
        layers.append(nn.Conv1d(channels, wider, kernel, padding=padding, dilation=dilation))
        channels = wider
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(channels))
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from(POINTWISE[:3]))())
        layers += [
            Residual(nn.ReLU(), conv(channels, channels, kernel, dilation))
            for _ in range(draw(st.integers(0, 2)))
        ]
        if draw(st.booleans()):
            layers += [MaxPool(2, draw(st.booleans())), ScaledGELU()]
    try:
        model = drawn(window, *layers)
    except RuntimeError:  # the window is too short for these layers
        assume(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, -2, 2)
        if isinstance(module, nn.Conv1d | nn.Linear):  # values of about 1
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model


@settings(
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(fused_trunks(), st.data())
def test_any_blocks_at_any_stride(model: SequenceModel, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, model.window))
    try:
        phases_of(model, stride)
    except CannotShareError:
        assume(False)
    prepared = prepare(model)
    sharing = Sharing(prepared, stride, data.draw(st.integers(1, 4)) * phases_of(prepared, stride))
    codes = random_codes(sharing.bases)
    with torch.no_grad():
        assert difference(sharing(codes), by_window(model, codes, stride)) <= 1e-5


def test_blocks_that_are_called_twice() -> None:
    """Their outputs are as large as their inputs, and must not be in the same memory."""
    once = nn.Sequential(nn.Conv1d(48, 48, 1))
    for layers in ([once, once, once], [once, Residual(nn.Sequential(once))]):
        compare(drawn(40, conv(4, 48), nn.Tanh(), *layers), 7)


def test_codes_of_any_strides() -> None:
    model = model_of(*CASES[0])
    bases = 23 * 8 + model.window
    compare(model, 8, codes=random_codes(2 * bases)[::2])
    compare(model, 8, codes=random_codes(1).expand(bases))


@pytest.mark.parametrize(("dtype", "tolerance"), [*TOLERANCES.items()][1:])
@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_half_precision(
    name: str, config: dict[str, object], dtype: torch.dtype, tolerance: float
) -> None:
    """As the engine calls it: blocks of that type, torch's layers under autocast."""
    model = model_of(name, config)
    for kernels in ("auto", by_onednn(model)):
        prepared = prepare(model, kernels, dtype=dtype)
        for stride in (5, 8):
            sharing = Sharing(prepared, stride, 4 * phases_of(prepared, stride))
            codes = random_codes(sharing.bases)
            wanted = by_window(model, codes, stride)
            with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
                found = sharing(codes).float()
            assert difference(found, wanted) <= tolerance


# Work, and what a window depends on


def test_phases_are_starts_modulo_the_pool() -> None:
    model = build("tf-cnn", window=100, filters=4)  # pool 4
    assert [phases_of(model, stride) for stride in (4, 8, 2, 6, 1, 3)] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("stride", [8, 5])
def test_counted_work_is_done_work(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("basenji-maize", {"window": 300})
    prepared, windows, done = prepare(model), 32, 0

    def counting(block: FusedConv, x: Tensor, *how: Any) -> Any:
        nonlocal done
        positions = len(x) * convolved_length(x.shape[1], block.receptive_field, how[1])
        done += positions * block.channels_in * block.weight.shape[0] * block.channels
        return kernels[block](x, *how)

    kernels = {m: m.kernel for m in prepared.modules() if isinstance(m, FusedConv)}
    monkeypatch.setattr(FusedConv, "kernel", property(lambda block: partial(counting, block)))
    shared(prepared, random_codes((windows - 1) * stride + 300), stride, windows)
    (linear,) = (layer for layer in model.head if isinstance(layer, nn.Linear))
    work = stretch_work(trunk_of(prepared), stride, windows)
    done += windows * linear.weight.numel()
    # Of an edge that ends within a pool, the block computes the rest of the pool as well.
    assert work.multiply_adds <= done <= 1.03 * work.multiply_adds


def test_work_a_window_falls_with_the_stride() -> None:
    """Nearly flat a base: what is left beside the stretch are edges and head."""
    model = build("basenji-maize")
    naive, trunk = multiply_adds(model, 3000), trunk_of(model, as_written=True)
    assert multiply_adds(trunk.model, 3000) == naive
    assert naive == 4 * 8 * 15 * 3000 + 8 * 16 * 5 * 1500 + 375 * (
        2 * 16 * 32 * 5 + 2 * (32 * 16 * 3 + 16 * 32) + 32 * 32 + 32 + 1
    )
    saved = {
        stride: naive * 1024 / stretch_work(trunk, stride, 1024).multiply_adds
        for stride in (1504, 752, 376, 104, 48)
    }
    assert sorted(saved, key=saved.__getitem__) == list(saved)
    assert saved[104] > 19


@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_window_depends_on_its_slot_and_on_no_other_base(
    name: str, config: dict[str, object]
) -> None:
    """Resumed, sharded and BED runs are equal to the bit because of it."""
    model = model_of(name, config)
    stride, windows = 9, 64
    sharing = Sharing(prepare(model), stride, windows)
    codes, others = (random_codes(sharing.bases, seed) for seed in (1, 2))
    with torch.no_grad():
        whole = sharing(codes)
        for slot in (0, 1, windows // 2, windows - 1):
            part = slice(slot * stride, slot * stride + model.window)
            mixed = others.clone()
            mixed[part] = codes[part]
            assert torch.equal(sharing(mixed)[slot], whole[slot])


def test_the_model_stays_as_it_is() -> None:
    model = prepare(model_of("tf-cnn", {"window": 100, "filters": 16}))
    codes = random_codes(64 * 100).view(64, 100)
    with torch.no_grad():
        before = model(codes)
        shared(model, random_codes(7 * 10 + 100), 10, 8)
        assert torch.equal(model(codes), before)
