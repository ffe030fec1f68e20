"""The prepared form of a model: architectures, layers, kernels, and what it is as an object."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from genomepred.errors import ModelError
from genomepred.kernels import dispatch
from genomepred.lowering.blocks import (
    Affine,
    DirectActivation,
    DirectLinear,
    FusedChain,
)
from genomepred.lowering.fuse import kernels_of, kind_of, prepare
from genomepred.lowering.receptive_field import receptive_field
from genomepred.models import MODELS
from genomepred.models.card import difference
from genomepred.models.checkpoint import build
from genomepred.models.layers import (
    MaxPool,
    OneHot,
    SameConv1d,
    SequenceModel,
)
from tests.kernels.cases import TOLERANCES
from tests.lowering.fused import all_by_onednn, blocks_of, check, codes_like, conv, exact, settle

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
    assert kind_of(nn.Conv1d(4, 6, 3, dilation=2)) == "conv"
    for layer in (nn.Conv1d(4, 6, 3, stride=2), nn.Conv1d(4, 6, 3, groups=2)):
        assert kind_of(layer) == "other conv"
        assert kernels_of(prepare(nn.Sequential(layer, nn.ReLU()))) == ("torch",)
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
    for kind, kernel in ((block_cpu.Packed, "linear"), (epilogue_cpu, "activation")):
        call = getattr(kind, kernel)
        monkeypatch.setattr(
            kind, kernel, lambda *given, call=call, n=kernel: calls.append(n) or call(*given)
        )
    with torch.no_grad():
        prepared(codes_like(3, model.window))
    assert calls.count("linear") == len(linear)
    assert calls.count("activation") == len(activations)
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
            ours = prepare(nn.Sequential(conv(), nn.Flatten(), nn.Linear(*size)))[2]
            assert isinstance(ours, DirectLinear) is (large and fma), size
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
    with pytest.raises(ModelError, match=message):
        prepare(build("tf-cnn", window=40, filters=8), kernels)


def test_another_type_is_refused() -> None:
    with pytest.raises(ModelError, match="float32, float16 or bfloat16, not in torch.float64"):
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


@pytest.mark.parametrize("kernels", ["direct", "onednn", "triton"])
def test_a_dropped_model_waits_for_no_garbage_collector(
    residual_model: SequenceModel, kernels: str
) -> None:
    """Its memory may be a GPU's, which is not what the collector counts."""
    gc.disable()
    try:
        prepared = prepare(residual_model)
        blocks = list[Any](map(weakref.ref, blocks_of(prepared)))
        for block in blocks:
            block().use("kmers" if block().reads_codes and kernels == "direct" else kernels)
        if kernels != "triton":
            prepared(codes_like(7, 90))
        del prepared
        assert [block() for block in blocks] == [None] * len(blocks)
    finally:
        gc.enable()


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
    layers = SameConv1d(6, 5, 4), nn.GELU("tanh"), MaxPool(2), SameConv1d(5, 3, 3)
    stack = settle(nn.Sequential(*layers))
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
