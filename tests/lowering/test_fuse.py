from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from genomepred.kernels import dispatch
from genomepred.lowering import fuse
from genomepred.lowering.blocks import (
    Affine,
    DirectActivation,
    DirectLinear,
    FusedChain,
    FusedConv,
)
from genomepred.lowering.fuse import fast_form, fusable, kernels_of, pays, prepare
from genomepred.lowering.receptive_field import receptive_field
from genomepred.models import MODELS, build
from genomepred.models.agreement import difference
from genomepred.models.layers import (
    AttentionPool,
    FlattenPositions,
    MaxPool,
    OneHot,
    Residual,
    SameConv1d,
    ScaledGELU,
    SequenceModel,
    TanhGELU,
)
from tests.helpers import examples
from tests.kernels.cases import TOLERANCES
from tests.models.as_written import AS_WRITTEN, make_as_written


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def codes_like(batch: int, window: int, seed: int = 0, most: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, most + 1, (batch, window), generator=generator).to(torch.uint8)


def settle(model: nn.Module, seed: int = 0) -> Any:
    """In evaluation mode, its BatchNorms with any statistics and scales, of either sign and zero.

    Weights are spread so that values neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.5, generator=generator)
                with torch.no_grad():
                    module.weight[1 + module.num_features // 2 :: 7] = 0  # never all of them
        if isinstance(module, ScaledGELU):
            nn.init.uniform_(module.a, 0.5, 2, generator=generator)
    return model.eval()


@torch.no_grad()
def exact(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The model as written, in double precision."""
    x = x.double() if x.is_floating_point() else x
    values: torch.Tensor = copy.deepcopy(model).double()(x)
    return values


def blocks_of(prepared: nn.Module) -> list[FusedConv]:
    return [module for module in prepared.modules() if isinstance(module, FusedConv)]


def all_by_onednn(prepared: nn.Module) -> tuple[str, ...]:
    names = ("kmers" if b.reads_codes else "onednn" for b in blocks_of(prepared))
    return tuple(names) or ("torch",)


def check(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Every form of a model equals it, on the input and on its first row alone."""
    expected = exact(model, x)
    prepared = prepare(model)
    with torch.no_grad():
        for form in (prepared, prepare(model, all_by_onednn(prepared)), prepare(model, "torch")):
            # Of a copy, which a first activation may change.
            assert difference(form(x.clone()), expected) <= 1e-5
            assert difference(form(x[:1].clone()), expected[:1]) <= 1e-5
    return prepared


# Architectures

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "basenji-maize": [
        {"window": 2, "tower_repeat": 0, "dilated_repeat": 0},
        {"window": 3, "tracks": 3},
        {"window": 81, "tower_repeat": 0, "dilated_repeat": 3, "rate_multiplier": 1.5},
        {"window": 64, "dilated_repeat": 0, "filters": 1, "n_policy": "uniform"},
        {"window": 101, "rate_multiplier": 3.0, "dilated_repeat": 3, "dilated_kernel": 4},
        {"window": 90, "tower_first": 9, "tower_last": 21, "tower_repeat": 3, "filters": 17},
        {"window": 55, "kernel": 6, "tower_kernel": 2, "head_filters": 5, "base_order": "TGCA"},
        {"window": 130, "tower_first": 1, "tower_last": 1, "tower_repeat": 1, "final_filters": 3},
    ],
    "linear": [{"window": 1}, {"window": 33, "tracks": 5, "n_policy": "ones"}],
    "motif-cnn": [
        {"window": 3},
        {"window": 40, "filters": 1, "kernel": 40},
        {"window": 21, "filters": 13, "kernel": 4, "tracks": 2, "base_order": "CAGT"},
    ],
    "nucleic-transformer": [
        *({"window": window, "kmers": kmers, "dim": 8, "heads": 2, "layers": 1, "feedforward": 16}
          for window, kmers in ((12, [1, 5, 12]), (31, [3]))),
    ],
    "optimus5p": [
        {"window": 1, "filters": 6},
        {"window": 22, "filters": 5, "padding": "valid"},
        {"window": 30, "filters": 9, "convolutions": 1, "kernel": 1, "tracks": 2},
        {"window": 25, "filters": 130, "convolutions": 2, "kernel": 3, "n_policy": "uniform"},
    ],
    "tf-cnn": [
        {"window": 4, "filters": 1},
        {"window": 31, "blocks": 0},
        {"window": 67, "filters": 20, "blocks": 4, "kernel": 7, "base_order": "GATC"},
        {"window": 9, "filters": 8, "blocks": 1, "hidden": [], "tracks": 4, "n_policy": "zeros"},
    ],
    "tf-cnn-v2": [
        {"window": 4, "filters": 3},
        {"window": 35, "filters": 24, "n_policy": "uniform"},
    ],
    "tf-conv-transformer": [
        {"window": 4, "filters": 8},
        {"window": 20, "conv_blocks": 0, "heads": 4},
        {"window": 45, "conv_blocks": 3, "filters": 8, "transformer_blocks": 1, "mlp_blocks": 0},
    ],
    "utr-attention": [
        {"window": 3, "filters": 2},
        {"window": 17, "filters": 7, "depth": 4, "tracks": 3},
        {"window": 50, "filters": 33, "depth": 2, "base_order": "TCGA", "n_policy": "ones"},
    ],
}  # fmt: skip
CASES = [(name, config) for name, configs in CONFIGS.items() for config in configs]


def named(value: object) -> str:
    if isinstance(value, dict):
        return "-".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def test_every_architecture_is_compared() -> None:
    assert set(CONFIGS) == set(MODELS)


@pytest.mark.parametrize(("name", "config"), CASES, ids=named)
def test_an_architecture_equals_its_prepared_form(name: str, config: dict[str, Any]) -> None:
    for seed in (0, 1):
        model = settle(build(name, **config), seed)
        codes = codes_like(9, model.window, seed, most=255 if seed else 5)
        codes[0], codes[1] = 4, 2
        prepared = check(model, codes)
        if hasattr(model, "trunk"):
            assert receptive_field(prepared.trunk) == receptive_field(model.trunk)


@pytest.mark.parametrize("name", ["basenji-maize", "tf-cnn", "tf-cnn-v2", "optimus5p"])
@pytest.mark.parametrize(("precision", "tolerance"), [*TOLERANCES.items()][1:])
def test_half_precision_is_within_its_tolerance(
    name: str, precision: torch.dtype, tolerance: float
) -> None:
    """The last layers are torch's under autocast, which is how the engine calls them."""
    model = settle(build(name, window=101))
    codes = codes_like(16, 101)
    expected = exact(model, codes)
    scale = max(1.0, float(expected.abs().max()))
    for kernels in ("auto", all_by_onednn(prepare(model))):
        prepared = prepare(model, kernels, dtype=precision)
        with torch.no_grad(), torch.autocast("cpu", dtype=precision):
            found = prepared(codes)
            trunk = prepared.trunk(prepared.encode(codes))
        assert found.dtype == precision
        assert difference(found / scale, expected / scale) <= 2 * tolerance
        with torch.no_grad():
            wanted = exact(model.trunk, model.encode(codes))
        scale = max(1.0, float(wanted.abs().max()))
        assert difference(trunk / scale, wanted / scale) <= 2 * tolerance


# What the rewriting takes, and that it takes it: a silent return to torch's layers shows here

SIGMOID = ("gelu_sigmoid", 1.7020000219345093)
NONE = ("none", 1.0)
GOLDEN: dict[str, list[tuple[str, tuple[Any, ...], str]]] = {
    "basenji-maize": [
        ("kmers", (*NONE, "floor", *SIGMOID), ""),
        ("direct", (*NONE, "ceil", *SIGMOID), ""),
        ("direct", (*NONE, "ceil", *SIGMOID), "keeps"),
        ("direct", (*SIGMOID, "none", *NONE), ""),
        ("direct", (*NONE, "none", *SIGMOID), "keeps adds"),
        ("direct", (*SIGMOID, "none", *NONE), ""),
        ("direct", (*NONE, "none", *SIGMOID), "adds"),
        ("direct", (*SIGMOID, "none", *NONE), ""),
        ("direct", (*NONE, "none", *NONE), ""),
    ],
    "tf-cnn": [
        ("kmers", ("gelu_tanh", 1.0, "floor", *NONE), ""),
        ("direct", ("gelu_tanh", 1.0, "floor", *NONE), ""),
    ],
    "tf-cnn-v2": [
        ("kmers", ("gelu_tanh", 1.0, "floor", *NONE), ""),
        ("direct", ("gelu_tanh", 1.0, "floor", *NONE), ""),
    ],
    "tf-conv-transformer": [
        ("kmers", ("gelu_tanh", 1.0, "floor", *NONE), ""),
        ("direct", ("gelu_tanh", 1.0, "floor", *NONE), ""),
    ],
    "optimus5p": [
        ("kmers", ("relu", 1.0, "none", *NONE), ""),
        ("direct", ("relu", 1.0, "none", *NONE), ""),
        ("direct", ("relu", 1.0, "none", *NONE), ""),
    ],
    "utr-attention": [
        ("kmers", ("relu", 1.0, "floor", *NONE), ""),
        ("direct", ("relu", 1.0, "floor", *NONE), ""),
    ],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_blocks_of_the_architectures(name: str) -> None:
    prepared = prepare(build(name))
    found = [
        (
            block.implementation,
            tuple(block.epilogue),
            " ".join(word for word in ("keeps", "adds") if getattr(block, word)),
        )
        for block in blocks_of(prepared)
    ]
    assert found == GOLDEN[name]
    assert kernels_of(prepared) == tuple(implementation for implementation, *_ in found)
    left = [layer for layer in prepared.trunk if type(layer) is not nn.Identity]
    rising = [Affine] if name == "tf-cnn-v2" else []  # BatchNorm behind the activation
    assert [type(layer) for layer in left] == [FusedChain, *rising]
    assert isinstance(prepared.encoder, nn.Identity)


def test_a_falling_norm_stays_before_its_pool() -> None:
    model = build("tf-cnn-v2", window=40, filters=8)
    with torch.no_grad():
        model.trunk[6].weight[3] = -1
    left = [type(layer) for layer in prepare(model).trunk if type(layer) is not nn.Identity]
    assert left == [FusedChain, Affine, MaxPool]


def test_a_scale_is_folded_before_the_pool_whatever_its_sign() -> None:
    norm = nn.BatchNorm1d(1).eval()
    nn.init.constant_(norm.weight, -2)
    conv = nn.Conv1d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, 1)
    prepared = prepare(nn.Sequential(conv, norm, MaxPool(2)))
    found = prepared(torch.tensor([[[1.0, 3.0, -5.0, 0.0]]]))
    assert found.flatten().tolist() == pytest.approx([-2.0, 10.0], rel=1e-4)


def test_which_convolutions_are_fused() -> None:
    assert fusable(nn.Conv1d(4, 6, 3, dilation=2))
    for conv in (nn.Conv1d(4, 6, 3, stride=2), nn.Conv1d(4, 6, 3, groups=2)):
        assert not fusable(conv)
        assert kernels_of(prepare(nn.Sequential(conv, nn.ReLU()))) == ("torch",)
    assert kernels_of(prepare(nn.Sequential(nn.Conv1d(4, 6, 3)).double())) == ("torch",)


# Layers beside the blocks

ENCODER_LAYER = (
    ["attention.project", "attention.out", "feedforward.0", "feedforward.3"],
    ["feedforward.1"],
)
DIRECT: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "tf-cnn": ({"window": 40, "hidden": [70, 64]}, ["head.1", "head.3"], ["head.2", "head.4"]),
    "tf-cnn-v2": ({"window": 40}, ["head.1", "head.4"], ["head.2", "head.5"]),
    "nucleic-transformer": (
        {"window": 31, "layers": 1},
        *([f"transformer.0.{path}" for path in paths] for paths in ENCODER_LAYER),
    ),
    "tf-conv-transformer": (
        {"window": 40, "transformer_blocks": 1, "mlp_blocks": 1},
        [*(f"head.transformer.0.{path}" for path in ENCODER_LAYER[0]), "head.mlp.0"],
        [*(f"head.transformer.0.{path}" for path in ENCODER_LAYER[1]), "head.mlp.1.0"],
    ),
}


def paths_of(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return sorted(name for name, module in model.named_modules() if type(module) is kind)


@pytest.mark.parametrize("name", DIRECT)
def test_linear_layers_and_activations_beside_blocks_are_ours(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not above: another suite imports this without Numba.
    from genomepred.kernels.conv_block import cpu as block_cpu
    from genomepred.kernels.epilogue import cpu as epilogue_cpu

    config, linear, activations = DIRECT[name]
    model = build(name, **config)
    prepared, calls = prepare(model), []
    assert paths_of(prepared, DirectLinear) == sorted(linear)
    assert paths_of(prepared, DirectActivation) == sorted(activations)
    for cpu, kernel in ((block_cpu, "linear"), (epilogue_cpu, "activated")):
        call = getattr(cpu, kernel)
        monkeypatch.setattr(
            cpu, kernel, lambda *x, call=call, n=kernel: calls.append(n) or call(*x)
        )
    with torch.no_grad():
        prepared(codes_like(3, model.window))
    assert (calls.count("linear"), calls.count("activated")) == (len(linear), len(activations))
    for other in (prepare(model, "torch"), prepare(model, dtype=torch.bfloat16)):
        assert not paths_of(other, DirectLinear)
        assert not paths_of(other, DirectActivation)


def test_without_a_block_all_layers_are_torchs() -> None:
    """Then `torch` is what the model is computed by, and must be."""
    dense = nn.Sequential(nn.Linear(80, 64), nn.GELU(), nn.Linear(64, 64))
    for model in (build("linear", window=33, tracks=64), dense):
        prepared = prepare(model)
        assert kernels_of(prepared) == ("torch",)
        assert not paths_of(prepared, DirectLinear)
        assert not paths_of(prepared, DirectActivation)
    assert paths_of(prepare(nn.Sequential(conv(), nn.Flatten(), dense)), DirectLinear) == [
        *("2.0", "2.2")
    ]


def test_which_linear_layers_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {(64, 64): True, (256, 16): True, (63, 65): False, (512, 15): False}
    model = build("tf-cnn", window=40)
    for fma in (True, False):
        monkeypatch.setattr(dispatch, "has_fma", lambda fma=fma: fma)
        for size, large in sizes.items():
            assert pays(nn.Linear(*size)) is (large and fma), size
        prepared = prepare(model)
        assert paths_of(prepared, DirectLinear) == (["head.1", "head.3"] if fma else [])
        assert paths_of(prepared, DirectActivation) == ["head.2", "head.4"]


def test_norms_outside_of_sequences_are_affine_maps() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.conv = nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3)
            self.norms = nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False)])
            self.dense = nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(self.before(x))
            for norm in self.norms:
                x = norm(x)
            return self.dense(x.amax(2))

    prepared = check(settle(Normed()), torch.randn(3, 4, 20))
    assert paths_of(prepared, Affine) == ["before", "dense", "norms.0", "norms.1"]
    assert not paths_of(prepared, nn.BatchNorm1d)


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}])
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_norms_behind_convolutions_of_torch_are_folded(
    options: dict[str, int], kernels: str
) -> None:
    stack = settle(
        nn.Sequential(nn.Conv1d(4, 6, 3, **options), nn.BatchNorm1d(6), nn.ReLU(), conv(6, 5))
    )
    prepared, x = prepare(stack, kernels), torch.randn(3, 4, 20)
    assert kernels_of(prepared) == (("direct",) if kernels == "auto" else ("torch",))
    assert type(prepared[1]) is nn.Identity
    with torch.no_grad():
        assert difference(prepared(x), exact(stack, x)) <= 1e-5


@pytest.mark.parametrize("shape", [(2, 5, 9), (2, 1, 9), (2, 5), (2, 1), (4,), (1, 2, 4, 9)])
def test_an_affine_map_refuses_other_channels(shape: tuple[int, ...]) -> None:
    norm = nn.BatchNorm1d(4).eval()
    with pytest.raises(ValueError, match=r"expected 4 channels, found \["):
        Affine(norm.weight, norm.bias)(torch.zeros(shape))


# Kernels


def test_the_kernels_are_as_asked_for() -> None:
    model = build("tf-cnn", window=40, filters=8)
    codes = codes_like(5, 40)
    assert (
        kernels_of(prepare(model, "auto"))
        == kernels_of(prepare(model, "cpu"))
        == ("kmers", "direct")
    )
    other = prepare(model, ("kmers", "onednn"))
    assert kernels_of(other) == ("kmers", "onednn")
    plain = prepare(model, "torch")
    assert kernels_of(plain) == ("torch",)
    assert not blocks_of(plain)
    assert isinstance(plain.encoder, OneHot)
    with torch.no_grad():
        again = prepare(model, kernels_of(prepare(model)))
        assert torch.equal(again(codes), prepare(model)(codes))


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        (("kmers",), "kernels 'kmers': expected auto, triton, cudnn, cpu, torch or the implem"),
        (("kmers", "direct", "direct"), "implementations of the model's 2 blocks"),
        (("direct", "direct"), "'direct' does not compute codes_conv on cpu; use kmers"),
        (("kmers", "kmers"), "'kmers' does not compute conv_block on cpu; use direct or onednn"),
        (("kmers", "triton"), "'triton' does not compute conv_block on cpu"),
        (("kmers", " direct"), "' direct' does not compute"),
        ("fastest", "kernels 'fastest': one of auto, triton, cudnn, cpu"),
        ((), "implementations of the model's 2 blocks"),
        ("triton", "triton kernels do not run on cpu"),
        ("cudnn", "cudnn kernels do not run on cpu"),
        ("reference", "reference"),
    ],
)
def test_wrong_kernels_are_refused(kernels: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(build("tf-cnn", window=40, filters=8), kernels)


def test_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="float32, float16 or bfloat16, not in torch.float64"):
        prepare(build("tf-cnn", window=40, filters=8), dtype=torch.float64)


# A prepared model as an object


@pytest.fixture(scope="module")
def residual_model() -> SequenceModel:
    model: SequenceModel = settle(build("basenji-maize", window=90))
    return model


def test_the_given_model_stays_as_it_is(residual_model: SequenceModel) -> None:
    model = copy.deepcopy(residual_model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = list(model.modules())
    prepared = prepare(model)
    prepared(codes_like(5, 90))
    assert all(a is b for a, b in zip(model.modules(), layers, strict=True))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not prepared.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_compute_the_same_in_memory_of_their_own(
    residual_model: SequenceModel, copied: Any
) -> None:
    prepared, codes = prepare(residual_model), codes_like(7, 90)
    with torch.no_grad():
        expected = prepared(codes)
        size = len(pickle.dumps(prepared))
        prepared(codes_like(500, 90))
        assert len(pickle.dumps(prepared)) < size + 1000  # no outputs of blocks
        twin = copied(prepared)
        assert kernels_of(twin) == kernels_of(prepared)
        kept = prepared.trunk(codes)
        values = kept.clone()
        assert torch.equal(twin(codes), expected)
        twin(codes_like(7, 90, 1))
        assert torch.equal(kept, values)
        assert torch.equal(prepared(codes), expected)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kernels", ["direct", "onednn"])
def test_what_a_caller_holds_outlives_the_next_call(
    residual_model: SequenceModel, kernels: str, dtype: torch.dtype
) -> None:
    names = ["kmers", *[kernels] * 8]
    prepared = prepare(residual_model, tuple(names), dtype=dtype)
    with torch.no_grad():
        held = [prepared.trunk(codes_like(batch, 90, batch)) for batch in (6, 3, 6)]
        values = [trunk.clone() for trunk in held]
        for seed, batch in enumerate((6, 3, 1, 6, 8)):
            prepared.trunk(codes_like(batch, 90, seed))
            assert all(map(torch.equal, held, values))
        fresh = prepare(residual_model, tuple(names), dtype=dtype)
        for batch, value in zip((6, 3, 6), values, strict=True):
            assert torch.equal(prepared.trunk(codes_like(batch, 90, batch)), value)
            assert torch.equal(fresh.trunk(codes_like(batch, 90, batch)), value)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_modes_of_autograd_follow_each_other(
    residual_model: SequenceModel, dtype: torch.dtype
) -> None:
    prepared, codes = prepare(residual_model, dtype=dtype), codes_like(4, 90)
    found = []
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
            with mode():
                found.append(prepared(codes))
    assert not found[2].requires_grad
    assert all(torch.equal(values, found[0]) for values in found)


def test_layers_left_as_they_are_ask_for_no_gradient() -> None:
    """A kernel could not follow them."""
    stack = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 6, 3))
    assert prepare(stack)(torch.randn(2, 4, 20)).shape == (2, 6, 16)


@pytest.mark.parametrize("name", ["tf-cnn", "linear", "motif-cnn", "basenji-maize"])
def test_codes_of_any_layout(name: str) -> None:
    model = settle(build(name, window=33))
    prepared, block = prepare(model), codes_like(1, 400, most=255)[0]
    for codes in (
        block.as_strided((20, 33), (7, 1)),
        block.as_strided((5, 33), (1, 3), 11),
        block[: 33 * 9].view(33, 9).T,
        block[:33].expand(4, 33),
        block.as_strided((0, 33), (33, 1)),
    ):
        with torch.no_grad():
            assert difference(prepared(codes), exact(model, codes)) <= 1e-5
            assert torch.equal(prepared(codes), prepared(codes.contiguous()))


def test_features_of_any_layout_and_type() -> None:
    stack = settle(nn.Sequential(SameConv1d(6, 5, 4), TanhGELU(), MaxPool(2), SameConv1d(5, 3, 3)))
    prepared, x = prepare(stack), torch.randn(3, 6, 40)
    assert kernels_of(prepared) == ("direct", "direct")
    for given_x in (
        x,
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x[:, :, 5:30],
        x[:, :, ::2],
        x.transpose(0, 2).contiguous().transpose(0, 2),
        x[::2],
        x[:1].expand(4, 6, 40),
        x[:, :, :2],
        x.double(),
    ):
        with torch.no_grad():
            assert difference(prepared(given_x), exact(stack, given_x)) <= 1e-5


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(3, 5, 40), r"takes \[batch, 6, length\], found torch.float32 \[3, 5, 40\]"),
        (torch.randn(6, 40), r"takes \[batch, 6, length\], found torch.float32 \[6, 40\]"),
        (torch.randn(3, 6, 2), "2 positions with padding .0, 0. are fewer than the 4"),
    ],
)
def test_an_input_that_the_kernels_would_read_past_is_refused(
    x: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(nn.Sequential(nn.Conv1d(6, 5, 4)))(x)


def test_one_hot_where_codes_are_read_is_refused() -> None:
    prepared = prepare(build("tf-cnn", window=40, filters=8))
    with pytest.raises(
        ValueError, match=r"takes uint8 \[batch, length\], found torch.float32 \[2, 4, 40\]"
    ):
        prepared.trunk(torch.zeros(2, 4, 40))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float32])
@pytest.mark.parametrize("name", [*GOLDEN, "motif-cnn", "nucleic-transformer"])
def test_codes_of_another_type_are_refused(name: str, dtype: torch.dtype) -> None:
    prepared = prepare(build(name, window=40))
    found = rf"takes uint8 \[batch, length\], found {dtype} \[2, 40\]"
    with pytest.raises(ValueError, match=found):
        prepared(codes_like(2, 40).to(dtype))


def test_the_prepared_trunk_keeps_channels_last_memory() -> None:
    for kernels in ("auto", "torch"):
        prepared = prepare(build("tf-cnn", window=100), kernels)
        with torch.no_grad():
            assert prepared.trunk(prepared.encode(codes_like(2, 100))).stride(1) == 1


# Any stack of layers

ACTIVATIONS = (
    *(nn.ReLU, nn.GELU, TanhGELU, ScaledGELU, nn.SiLU, nn.Mish, nn.Tanh, nn.ELU),
    *(nn.Identity, nn.Dropout, lambda: nn.LeakyReLU(0.2), lambda: nn.LeakyReLU(-1.5)),
    *(lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True)),
)


@st.composite
def convolutions(draw: st.DrawFn, channels: int, wider: int) -> nn.Module:
    kernel, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    bias = draw(st.booleans())
    if draw(st.booleans()):
        return SameConv1d(channels, wider, kernel, dilation=dilation, bias=bias)
    options: dict[str, Any] = {"dilation": dilation, "bias": bias}
    options["padding"] = draw(st.sampled_from(["same", "valid", 0, 1, 2, 3, 9]))
    special = draw(st.integers(0, 9))
    if special == 0 and options["padding"] != "same":
        options["stride"] = 2
    elif special == 1:
        options["groups"] = channels if wider % channels == 0 else 1
    elif special == 2:
        options["padding"], options["padding_mode"] = 1, "circular"
    return nn.Conv1d(channels, wider, kernel, **options)


@st.composite
def norms(draw: st.DrawFn, channels: int) -> nn.Module:
    return nn.BatchNorm1d(channels, affine=draw(st.integers(0, 4)) > 0)


@st.composite
def residuals(draw: st.DrawFn, channels: int, depth: int) -> nn.Module:
    """A branch that keeps the shape, with or without an activation before and behind."""
    branch: list[nn.Module] = []
    if draw(st.booleans()):
        branch.append(draw(st.sampled_from(ACTIVATIONS))())
    if draw(st.integers(0, 5)) == 0:
        branch.append(draw(norms(channels)))
    inner = channels
    for i in range(count := draw(st.integers(0, 3))):
        wider = channels if i + 1 == count else draw(st.integers(1, 20))
        kernel, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 4))
        branch.append(SameConv1d(inner, wider, kernel, dilation=dilation, bias=draw(st.booleans())))
        inner = wider
        if draw(st.booleans()):
            branch.append(draw(norms(inner)))
        if draw(st.booleans()):
            branch.append(draw(st.sampled_from(ACTIVATIONS))())
    if depth and draw(st.integers(0, 3)) == 0:
        branch.insert(draw(st.integers(0, 1)), draw(residuals(channels, depth - 1)))
    if count and draw(st.integers(0, 5)) == 0:  # one that shortens, one that lengthens
        branch += [nn.Conv1d(channels, channels, 3), nn.Conv1d(channels, channels, 3, padding=2)]
    return Residual(*branch)


@st.composite
def stacks(draw: st.DrawFn, channels: int, depth: int = 2) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["conv"] * 3 + ["norm", "act", "act", "pool", "res", "nest"]))
        if kind == "conv":
            wider = draw(st.one_of(st.integers(1, 20), st.just(channels)))
            layers.append(draw(convolutions(channels, wider)))
            channels = wider
        elif kind == "norm":
            layers.append(draw(norms(channels)))
        elif kind == "act":
            layers.append(draw(st.sampled_from(ACTIVATIONS))())
        elif kind == "pool":
            layers.append(MaxPool(draw(st.sampled_from([2, 2, 2, 1, 3])), draw(st.booleans())))
        elif kind == "res":
            layers.append(draw(residuals(channels, 1)))
        elif depth:
            nested, channels = draw(stacks(channels, depth - 1))
            layers.append(nn.Sequential(*nested))
    return layers, channels


def field_or_none(stack: nn.Module) -> object:
    try:
        return receptive_field(stack)
    except Exception:
        return None


@given(data=st.data())
@settings(max_examples=examples(100))
def test_any_stack_equals_its_prepared_form(data: st.DataObject) -> None:
    torch.manual_seed(0)
    channels = data.draw(st.sampled_from([4, 1, 3, 16, 33]))
    layers, _ = data.draw(stacks(channels))
    stack = settle(nn.Sequential(*layers), data.draw(st.integers(0, 99)))
    x = torch.randn(data.draw(st.integers(1, 4)), channels, data.draw(st.integers(1, 70)))
    try:
        expected = exact(stack, x)
    except RuntimeError:  # too short for these layers
        assume(False)
    assume(expected.numel() and expected.isfinite().all())
    prepared = check(stack, x)
    assert field_or_none(prepared) == field_or_none(stack)
    assert not any(map(fusable, filter(is_left, prepared.modules())))


@given(data=st.data())
@settings(max_examples=examples(60))
def test_any_dense_stack_equals_its_prepared_form(data: st.DataObject) -> None:
    """Linear layers on features of any layout, with norms and activations between them."""
    torch.manual_seed(0)
    shape = data.draw(st.sampled_from([(), (3,), (1, 5), (4, 3), (2, 3, 4)]))
    size = data.draw(st.integers(1, 130))
    x = torch.randn(*shape, 2 * size)
    features, layers = size, []
    for _ in range(data.draw(st.integers(1, 4))):
        wider = data.draw(st.integers(1, 130))
        layers.append(nn.Linear(features, wider, bias=data.draw(st.booleans())))
        features = wider
        if len(shape) == 1 and data.draw(st.booleans()):
            layers.append(data.draw(norms(features)))
        layers.append(data.draw(st.sampled_from(ACTIVATIONS))())
    layout = data.draw(st.sampled_from(["whole", "half", "every second", "transposed"]))
    x = {
        "whole": x[..., :size].contiguous(),
        "half": x[..., size:],
        "every second": x[..., ::2],
        "transposed": x[..., :size].transpose(0, -1).contiguous().transpose(0, -1),
    }[layout]
    stack = settle(nn.Sequential(*layers))
    expected, kept = exact(stack, x), x.clone()
    with torch.no_grad():
        for form in (beside_a_block(stack), prepare(stack), prepare(stack, "torch")):
            assert difference(form(x), expected) <= 1e-5
    assert torch.equal(x, kept)


def beside_a_block(layer: nn.Module) -> nn.Module:
    """Prepared form of a layer in a model with a block; without one it would stay as written."""
    return prepare(nn.ModuleDict({"layer": layer, "block": conv()}))["layer"]


@pytest.mark.parametrize("features", [63, 128])
def test_features_that_do_not_fit_are_refused_as_by_the_model(features: int) -> None:
    prepared = beside_a_block(nn.Linear(64, 80))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prepared(torch.randn(5, features))


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Mish(), nn.LeakyReLU(0.3), ScaledGELU()])
@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_of_any_layout(layer: nn.Module, inplace: bool) -> None:
    layer = copy.deepcopy(layer)
    if hasattr(layer, "inplace"):
        layer.inplace = inplace
    prepared, cube = beside_a_block(layer), torch.randn(6, 8, 10)
    assert isinstance(prepared, DirectActivation) is not getattr(layer, "inplace", False)
    for x in (
        *(torch.tensor(1.5), cube[0, 0], cube[0], cube[0].T, cube, cube[:, ::2], cube[:0]),
        *(cube.transpose(1, 2), cube.transpose(0, 2), cube[None].transpose(1, 3), cube.double()),
    ):
        with torch.no_grad():
            ours, theirs = x.clone(), x.clone()
            assert difference(prepared(ours), layer(theirs)) <= 1e-5
            assert torch.equal(ours, theirs), "whether the input is changed"


def test_an_activation_in_place_changes_what_is_added() -> None:
    for layers in (
        [conv(), Residual(nn.ReLU(inplace=True), conv())],
        [conv(), Residual(nn.SiLU(inplace=True), conv())],
        [conv(), nn.ReLU(inplace=True), Residual(conv(), nn.Mish(inplace=True)), conv()],
    ):
        check(settle(nn.Sequential(*layers)), torch.randn(3, 4, 20))


def is_left(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv1d, SameConv1d) and layer.padding_mode == "zeros"


class Stacked(SequenceModel):
    """A trunk whose positions are pooled."""

    def __init__(self, window: int, trunk: nn.Sequential, channels: int, **options: Any) -> None:
        super().__init__(window, 2, **options)
        self.trunk = trunk
        self.head = nn.Sequential(AttentionPool(channels), nn.Linear(channels, 2))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.head(self.trunk(x))
        return values.unsqueeze(1)


@given(data=st.data())
@settings(max_examples=examples(60))
def test_any_trunk_on_codes_equals_its_prepared_form(data: st.DataObject) -> None:
    torch.manual_seed(0)
    layers, channels = data.draw(stacks(4))
    window = data.draw(st.integers(1, 70))
    order, policy = (
        data.draw(st.permutations("ACGT")),
        data.draw(st.sampled_from(["ones", "zeros", "uniform"])),
    )
    trunk = nn.Sequential(*layers)
    model = Stacked(window, trunk, channels, base_order="".join(order), n_policy=policy)
    settle(model, data.draw(st.integers(0, 99)))
    codes = codes_like(3, window, most=6)
    try:
        expected = exact(model, codes)
    except RuntimeError:
        assume(False)
    assume(exact(trunk, model.encode(codes)).numel() and expected.isfinite().all())
    prepared = check(model, codes)
    assert field_or_none(prepared.trunk) == field_or_none(model.trunk)


# What may follow what


def conv(channels_in: int = 4, channels: int = 4, kernel: int = 3) -> nn.Module:
    return SameConv1d(channels_in, channels, kernel)


FUSED_STACKS: dict[str, tuple[list[nn.Module], int]] = {
    "leading activation of a branch": ([conv(), Residual(nn.ReLU(), conv(), nn.ReLU(), conv())], 1),
    "branch ends in an activation": ([conv(), Residual(conv(), nn.GELU()), TanhGELU(), conv()], 1),
    "branch ends in a norm": ([conv(), Residual(conv(), nn.BatchNorm1d(4)), MaxPool(2), conv()], 1),
    "residual behind a residual": ([conv(), *(Residual(nn.ReLU(), conv()) for _ in range(3))], 1),
    "residual behind a pool": ([conv(), MaxPool(2, True), Residual(nn.ReLU(), conv())], 1),
    "norm between residuals": ([conv(), Residual(conv()), nn.BatchNorm1d(4), conv()], 2),
    "norm behind a norm": ([conv(), nn.BatchNorm1d(4), nn.BatchNorm1d(4), conv()], 2),
    "activation behind two": ([conv(), nn.ReLU(), nn.GELU(), nn.ReLU(), conv()], 2),
    "pool behind a pool": ([conv(), MaxPool(2), MaxPool(2), conv()], 2),
    "pool of three": ([conv(), MaxPool(3), conv()], 2),
    "pool behind the activation of a sum": ([conv(), Residual(conv()), nn.ReLU(), MaxPool(2)], 1),
    "residual first": ([Residual(nn.ReLU(), conv()), conv()], 2),
    "nested residual": ([conv(), Residual(conv(), Residual(conv()))], 2),
    "pool in a branch of one position": ([conv(), MaxPool(2), Residual(conv(), MaxPool(1))], 2),
    "branch of one channel": ([conv(), Residual(conv(4, 1))], 2),
    "sum with one channel": ([conv(4, 1), Residual(conv(1, 4))], 2),
    "empty branch": ([conv(), Residual(nn.ReLU()), conv()], 2),
    "nested sequence": ([conv(), nn.Sequential(nn.ReLU(), conv()), nn.ReLU()], 2),
    "residual behind two activations": ([conv(), nn.ReLU(), nn.GELU(), Residual(conv())], 2),
    "nothing in between": ([nn.Dropout(), conv(), nn.Dropout(), nn.BatchNorm1d(4), nn.ReLU()], 1),
}


@pytest.mark.parametrize("name", FUSED_STACKS)
def test_what_becomes_a_chain(name: str) -> None:
    layers, chains = FUSED_STACKS[name]
    stack = settle(nn.Sequential(*layers))
    for length in (21, 20, 9):
        prepared = check(stack, torch.randn(3, 4, length))
    assert sum(isinstance(layer, FusedChain) for layer in prepared.modules()) == chains


def test_layers_used_twice() -> None:
    shared = nn.Sequential(conv(), nn.ReLU(), conv())
    residual = Residual(nn.ReLU(), conv())
    x = torch.randn(3, 4, 20)
    for layers in (
        [shared, nn.Tanh(), shared],
        [conv(), residual, residual],
        [Residual(shared)] * 2,
    ):
        check(settle(nn.Sequential(*layers)), x)


@pytest.mark.parametrize(
    "branch", [[conv(), MaxPool(2)], [nn.Conv1d(4, 4, 3)], [nn.Conv1d(4, 4, 1, padding=1)]]
)
def test_a_branch_of_another_length_is_refused_as_by_the_model(branch: list[nn.Module]) -> None:
    stack = nn.Sequential(conv(), Residual(*branch)).eval()
    for form in (stack, prepare(stack)):
        with torch.no_grad(), pytest.raises(RuntimeError, match="must match the size of tensor"):
            form(torch.randn(2, 4, 20))


@pytest.mark.parametrize("layers", [[conv(4, 8), conv(6, 4)], [conv(4, 8), conv(4, 4)], [conv(6)]])
def test_channels_that_do_not_fit_are_refused_as_by_the_model(layers: list[nn.Module]) -> None:
    model = Stacked(20, nn.Sequential(*layers), 4).eval()
    for form in (model, prepare(model)):
        with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
            form(codes_like(2, 20))


# What somebody has changed is called as it is


class Doubled(nn.BatchNorm1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Joined(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self], dim=1)


class Damped(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.5 * self.branch(x)


class MinPool(MaxPool):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(-x)


class Uncertain(nn.Dropout):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Louder(SameConv1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Shifted(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Named(nn.Sequential):
    """Nothing but a name."""


CHANGED: dict[str, list[nn.Module]] = {
    "norm": [conv(), Doubled(4), nn.ReLU()],
    "norm behind an activation": [conv(), nn.ReLU(), Doubled(4), MaxPool(2)],
    "sequence": [Joined(conv(), conv(4, 3)), nn.ReLU()],
    "residual": [conv(), Damped(nn.ReLU(), conv()), nn.ReLU()],
    "branch": [conv(), Residual(nn.ReLU(), Joined(conv(4, 1), conv(4, 3))), nn.ReLU()],
    "pool": [conv(), MinPool(2), nn.ReLU()],
    "pool behind a norm": [conv(), nn.ReLU(), nn.BatchNorm1d(4), MinPool(2)],
    "dropout": [conv(), Uncertain(), nn.ReLU()],
    "convolution": [conv(), nn.ReLU(), Louder(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU()],
    "activation": [conv(), Shifted(), conv()],
}


@pytest.mark.parametrize("name", CHANGED)
def test_subclasses_compute_what_they_say(name: str) -> None:
    for scale in (1.0, -1.0):
        stack = settle(nn.Sequential(*CHANGED[name]))
        for module in stack.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.constant_(module.weight, scale)
        check(stack, torch.randn(3, 4, 21))


def test_a_sequence_of_another_name_is_a_sequence() -> None:
    assert kernels_of(check(settle(Named(conv(), nn.ReLU(), conv())), torch.randn(2, 4, 9))) == (
        "direct",
        "direct",
    )


HOOKED = {
    "activation": nn.ReLU(),
    "dropout": nn.Dropout(),
    "identity": nn.Identity(),
    "pool": MaxPool(2),
    "residual": Residual(nn.ReLU(), conv()),
    "convolution": conv(),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", [*HOOKED, "branch", "norm behind an activation"])
def test_hooks_are_called(name: str, before: bool) -> None:
    layer: nn.Module = copy.deepcopy(HOOKED.get(name, HOOKED["residual"]))
    hooked: Any = layer.branch if name == "branch" else layer
    layers = [conv(), layer, nn.ReLU(), conv()]
    if name == "norm behind an activation":
        hooked = nn.BatchNorm1d(4)
        layers = [conv(), nn.ReLU(), hooked, MaxPool(2)]
    if before:
        hooked.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    else:
        hooked.register_forward_hook(lambda module, args, out: out * 3)
    check(settle(nn.Sequential(*layers)), torch.randn(3, 4, 20))


def test_a_hook_of_a_norm_behind_a_convolution_is_called() -> None:
    for first in (conv(), nn.Conv1d(4, 4, 3, groups=2)):
        stack = nn.Sequential(first, nn.BatchNorm1d(4), nn.ReLU())
        stack[1].register_forward_hook(lambda module, args, out: out * 3)
        check(settle(stack), torch.randn(2, 4, 20))


@pytest.mark.parametrize("where", ["encoder", "trunk", "encode"])
def test_what_is_changed_before_the_first_layer_reads_no_codes(where: str) -> None:
    class Halved(Stacked):
        def encode(self, codes: torch.Tensor) -> torch.Tensor:
            return super().encode(codes) / 2

    kind = Halved if where == "encode" else Stacked
    model = settle(kind(20, nn.Sequential(conv(), nn.ReLU(), conv()), 4))
    if where != "encode":
        module = model.encoder if where == "encoder" else model.trunk
        module.register_forward_hook(lambda module, args, out: out * args[0].shape[1])
    assert not any(block.reads_codes for block in blocks_of(check(model, codes_like(3, 20))))


def test_norms_without_statistics_are_those_of_the_batch() -> None:
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    x = torch.randn(3, 4, 20)
    for first in (conv(), nn.Conv1d(4, 4, 3, groups=2)):
        stack = nn.Sequential(first, norm, nn.ReLU(), MaxPool(2)).eval()
        for kernels in ("auto", "torch"):
            with torch.no_grad():
                assert difference(prepare(stack, kernels)(x), exact(stack, x)) <= 1e-5


# Modules of a user's own


class _Mixed(SequenceModel):
    """Everything the rewriting has to tell apart."""

    def __init__(self) -> None:
        super().__init__(30, 1)
        self.blocks = nn.Sequential(
            SameConv1d(4, 6, 6, bias=False),
            nn.BatchNorm1d(6),
            TanhGELU(),
            MaxPool(2, round_up=True),
            nn.Sequential(nn.BatchNorm1d(6), nn.Conv1d(6, 5, 3, padding=1), TanhGELU()),
            nn.Conv1d(5, 5, 3, padding=1, padding_mode="circular"),
        )
        self.last = nn.Linear(5 * 15, 1)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.last(self.blocks(x).flatten(1)).unsqueeze(1)
        return values


@pytest.mark.parametrize(
    ("kernels", "blocks", "inner"),
    [
        (
            "auto",
            [*["FusedChain"], *["Identity"] * 3, "Sequential", "Conv1d"],
            ["Affine", "FusedChain", "Identity"],
        ),
        (
            "torch",
            *[["ChannelsLastConv", "Identity", "TanhGELU", "MaxPool", "Sequential", "Conv1d"]],
            ["BatchNorm1d", "ChannelsLastConv", "TanhGELU"],
        ),
    ],
)
def test_layers_of_a_model_without_a_trunk(
    kernels: str, blocks: list[str], inner: list[str]
) -> None:
    model = settle(_Mixed())
    prepared = prepare(model, kernels)
    assert [type(layer).__name__ for layer in prepared.blocks] == blocks
    assert [type(layer).__name__ for layer in prepared.blocks[4]] == inner
    assert isinstance(prepared.encoder, OneHot)
    check(model, codes_like(9, 30))


def test_the_fast_form_is_the_prepared_one_where_it_is_the_same_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = settle(build("tf-cnn", window=40))
    assert kernels_of(fast_form(model)) == ("kmers", "direct")
    other = settle(build("tf-cnn", window=40), 1)
    monkeypatch.setattr(fuse, "prepare", lambda model: other)
    assert fast_form(model) is model


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_modules_that_only_run_as_written_are_their_own_fast_form(
    tmp_path: Path, name: str
) -> None:
    model, _ = make_as_written(tmp_path, name)
    assert fast_form(model) is model


def test_layers_called_out_of_order_do_not_run_past_their_weights() -> None:
    """What a user's own forward may hand to a block is refused, and the model runs as written."""

    class Wide(SequenceModel):
        def __init__(self) -> None:
            super().__init__(40, 1)
            self.stem = nn.Sequential(nn.Conv1d(4, 64, 3), nn.ReLU(), nn.Conv1d(64, 8, 3))
            self.last = nn.Linear(8, 1)

        def body(self, x: torch.Tensor) -> torch.Tensor:
            wide = self.stem[0](x)
            values: torch.Tensor = self.last(self.stem[2](wide.relu()).amax(2)).unsqueeze(1)
            return values

    model = settle(Wide())
    assert fast_form(model) is model


def test_flattened_and_viewed_features() -> None:
    stack = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3), nn.BatchNorm1d(3))
    check(settle(stack), torch.randn(3, 4, 20))
    positions = nn.Sequential(conv(), MaxPool(2), FlattenPositions(), nn.Linear(40, 3))
    check(settle(positions), torch.randn(3, 4, 20))
