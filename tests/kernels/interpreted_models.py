"""Whole prepared models by a GPU's kernels, without a GPU; run by ``test_triton.py``.

Values: models are prepared for a device that is not there, and the registered operations run on
CPU tensors what they run on a GPU, the Triton kernels under the interpreter. What else a GPU makes
of a call is followed without values, on torch's fake CUDA tensors: that all operations are on the
GPU, have operands of one type under its autocast, and are such that a CUDA graph may hold them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genomepred.kernels.codes_conv import op as codes_op
from genomepred.kernels.conv_block import op as block_op
from genomepred.kernels.epilogue import op as epilogue_op
from genomepred.lowering import fuse
from genomepred.lowering.blocks import DirectActivation, DirectLinear, FusedConv
from genomepred.lowering.fuse import kernels_of, prepare
from genomepred.lowering.receptive_field import CannotShareError
from genomepred.lowering.shared import Sharing
from genomepred.models.card import difference
from genomepred.models.checkpoint import build
from genomepred.models.layers import MaxPool, Residual, SequenceModel
from tests.helpers import examples
from tests.kernels import interpreted  # noqa: F401 (sets the interpreter up)
from tests.kernels.cases import DTYPES, TOLERANCES
from tests.lowering import test_shared as overlaps
from tests.lowering.fused import codes_like, exact, settle
from tests.lowering.test_fuse import CASES, CONFIGS, named
from tests.lowering.test_shared import conv, drawn, phases_of, random_codes

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Using padding='same'")
LAST = [(name, configs[-1]) for name, configs in CONFIGS.items()]

for operation in (codes_op._operation, block_op._operation, epilogue_op._operation):
    operation.register_kernel("cpu")(operation._backend_fns["cuda"])


@pytest.fixture(autouse=True, scope="module")
def pretended() -> Iterator[None]:
    """A GPU that is not there; nothing here may need the kernels of a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, (8, 0))
        # The tensors by which a model's device is told.
        there = SimpleNamespace(device=torch.device("cuda:0"))
        patch.setattr(fuse, "chain", lambda *_: iter([there]))
        for name in ("codes_conv", "conv_block"):
            ways = fuse.dispatch.IMPLEMENTATIONS[name, "cuda"]
            patch.setitem(fuse.dispatch.IMPLEMENTATIONS, (name, "cpu"), ways)
        yield
    assert not {"numba", "genomepred.kernels.vectors"} & set(sys.modules)


def pretend(patch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    patch.setattr("torch.cuda.get_device_capability", lambda device: capability)


def mixed(model: nn.Module, first: str) -> tuple[str, ...]:
    """Names of kernels in which triton and cudnn take turns, wherever there are both."""
    others = itertools.cycle(["triton", "cudnn"] if first == "triton" else ["cudnn", "triton"])
    blocks = [module for module in prepare(model).modules() if isinstance(module, FusedConv)]
    names = ("triton" if b.reads_codes else next(others) for b in blocks)
    return tuple(names) or ("torch",)


def windows_of(model: SequenceModel, batch: int) -> Tensor:
    """Overlapping windows, views of one block."""
    block = codes_like(1, model.window + 3 * batch, most=5)[0]
    return block.as_strided((batch, model.window), (3, 1))


def called(model: nn.Module, codes: Tensor, precision: str) -> Tensor:
    """Values of a model, called as the engine calls it."""
    dtype = DTYPES[precision]
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=precision != "fp32"):
        out: Tensor = model(codes).float()
    return out


def check(prepared: nn.Module, model: nn.Module, codes: Tensor, precision: str) -> None:
    """A form of a model equals it, the whole of its output at a scale of 1.

    Without a block of ours it is the model under the same automatic precision, whose error may be
    large.
    """
    ours = kernels_of(prepared) != ("torch",)
    expected = exact(model, codes) if ours else called(model, codes, precision)
    scale = 1.0 if precision == "fp32" else max(1.0, float(expected.abs().max()))
    worst = difference(called(prepared, codes, precision) / scale, expected / scale)
    times = 1 if precision == "fp32" else 2
    assert worst <= times * TOLERANCES[DTYPES[precision]], kernels_of(prepared)


def check_shared(
    prepared: nn.Module, model: SequenceModel, stride: int, groups: int, precision: str
) -> None:
    """Windows of a block, by a form of a model, equal the model's own."""
    sharing = Sharing(prepared, stride, groups * phases_of(model, stride))
    codes = random_codes(sharing.bases)
    expected = exact(model, codes.unfold(0, model.window, stride))
    worst = difference(called(sharing, codes, precision), expected)
    assert worst <= TOLERANCES[DTYPES[precision]], kernels_of(prepared)


# Values


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("name", "config"), CASES, ids=named)
def test_an_architecture_equals_its_prepared_form(
    name: str, config: dict[str, Any], precision: str
) -> None:
    model = settle(build(name, **config))
    codes = windows_of(model, 5)
    kernels, batch = {
        "fp32": (mixed(model, "cudnn"), 1),
        "fp16": ("triton", 5),
        "bf16": (mixed(model, "triton"), 5),
    }[precision]
    prepared = prepare(model, kernels, dtype=DTYPES[precision])
    check(prepared, model, codes[:batch], precision)
    assert not [m for m in prepared.modules() if isinstance(m, DirectLinear | DirectActivation)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "config"), LAST, ids=named)
def test_before_tensor_cores(
    name: str, config: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choices of the table for the oldest GPUs run."""
    pretend(monkeypatch, (7, 0))
    model = settle(build(name, **config))
    check(prepare(model, dtype=DTYPES[precision]), model, windows_of(model, 4), precision)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("name", "config"), overlaps.CASES, ids=named)
def test_stretches_of_an_architecture_equal_its_windows(
    name: str, config: dict[str, Any], precision: str
) -> None:
    model = overlaps.model_of(name, config)
    stride, kernels = {
        "fp32": (8, mixed(model, "cudnn")),
        "fp16": (5, "triton"),
        "bf16": (6, mixed(model, "triton")),
    }[precision]
    prepared = prepare(model, kernels, dtype=DTYPES[precision])
    check_shared(prepared, model, stride, 2, precision)


TRUNKS: dict[str, Callable[[], SequenceModel]] = {
    "features, not codes": lambda: drawn(60, conv(4, 9, 3, 2), nn.ReLU(), conv(9, 7)),
    "a norm between chains": lambda: drawn(
        60, conv(4, 9), nn.ReLU(), nn.BatchNorm1d(9), conv(9, 7), nn.ReLU()
    ),
    "activations between chains": lambda: drawn(
        60, conv(4, 9), nn.Tanh(), conv(9, 7), nn.Softplus(), conv(7, 5)
    ),
    "convolutions of torch": lambda: drawn(
        60, conv(4, 8), nn.Conv1d(8, 8, 3, 2), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=2), conv(8, 7)
    ),
    "other pools": lambda: drawn(
        60, conv(4, 8), MaxPool(3), nn.ReLU(), conv(8, 7), MaxPool(3, round_up=True)
    ),
    "a residual branch of torch": lambda: drawn(
        60, conv(4, 8), nn.Tanh(), Residual(conv(8, 8), nn.Tanh(), conv(8, 8, 1)), conv(8, 3)
    ),
    "a kept value beside a pool": lambda: drawn(
        60, conv(4, 9), MaxPool(2), Residual(nn.ReLU(), conv(9, 3), nn.ReLU(), conv(3, 9))
    ),
    "edges of nothing but padding": lambda: drawn(
        40, nn.Conv1d(4, 5, 3), nn.Conv1d(5, 6, 1, padding=2), nn.ReLU(), MaxPool(2)
    ),
}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_what_stands_around_blocks(trunk: str, precision: str) -> None:
    model = TRUNKS[trunk]()
    for kernels in ("triton", "cudnn"):
        prepared = prepare(model, kernels, dtype=DTYPES[precision])
        check(prepared, model, windows_of(model, 2), precision)
        if trunk == "convolutions of torch":
            with pytest.raises(CannotShareError, match="none of our blocks"):
                Sharing(prepared, 3, 2)
        else:
            check_shared(prepared, model, 3, 2, precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("name", "config"), LAST, ids=named)
def test_half_precision_without_autocast(name: str, config: dict[str, Any], precision: str) -> None:
    """Torch's layers, whose weights are float32, take what the blocks give."""
    model = settle(build(name, **config))
    codes = windows_of(model, 3)
    with torch.no_grad():
        found = prepare(model, dtype=DTYPES[precision])(codes)
    expected = exact(model, codes)
    scale = max(1.0, float(expected.abs().max()))
    assert found.dtype == torch.float32
    assert difference(found / scale, expected / scale) <= 2 * TOLERANCES[DTYPES[precision]]


def test_autocast_leaves_blocks_in_float32() -> None:
    model = settle(build("basenji-maize", window=90))
    prepared = prepare(model, mixed(model, "cudnn"))
    codes = windows_of(model, 3)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = prepared.trunk(prepared.encode(codes))
    assert difference(found, exact(model.trunk, model.encode(codes))) <= 1e-5


@settings(
    max_examples=examples(8),
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(overlaps.fused_trunks(), st.data())
def test_any_blocks_at_any_stride(model: SequenceModel, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, model.window))
    kernels = mixed(model, data.draw(st.sampled_from(["triton", "cudnn"])))
    try:
        check_shared(prepare(model, kernels), model, stride, data.draw(st.integers(1, 3)), "fp32")
    except CannotShareError:
        assume(False)


# What is called


class Indexing(TorchFunctionMode):
    """Two functions of torch that need a CUDA library, even for fake tensors, by others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A call of torch's interface."""
        if func is Tensor.__getitem__:
            return indexed(*args)
        if func is Tensor.contiguous and not args[0].is_contiguous():
            return args[0].clone(memory_format=torch.contiguous_format)
        return args[0] if func is Tensor.contiguous else func(*args, **(kwargs or {}))


def indexed(x: Tensor, index: Any) -> Tensor:
    """``x[index]`` for slices, numbers and new dimensions."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        taken = sum(part is not None for part in index) - 1
        index = (*index[:at], *[slice(None)] * (x.dim() - taken), *index[at + 1 :])
    dim = 0
    for part in index:
        if isinstance(part, int):
            x = x.select(dim, part)
            continue
        if part is None:
            x = x.unsqueeze(dim)
        elif part != slice(None):
            x = torch.ops.aten.slice(x, dim, part.start, part.stop, part.step or 1)
        dim += 1
    return x


ONE_TYPE = ("mm", "addmm", "bmm", "baddbmm", "baddbmm_", "convolution")


class Watched(TorchDispatchMode):
    """Notes operations, and refuses what a GPU, or a CUDA graph, could not run.

    What waits for the host, as ``item`` does, has no result for a fake tensor and fails itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A call of an operation."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if name != "device":
            assert {t.device.type for t in tensors} <= {"cuda"}, name
        if name in ONE_TYPE:
            assert len({t.dtype for t in tensors}) == 1, (name, [t.dtype for t in tensors])
        self.names.append(name)
        return result


def move_to_nowhere(module: nn.Module) -> None:
    """Replace what a module registers by fake CUDA tensors, as moving it would by real ones."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    shape, strides = tensor.shape, tensor.stride()
                    fake = torch.empty_strided(shape, strides, dtype=tensor.dtype, device="cuda")
                    tensors[name] = (
                        nn.Parameter(fake, False) if tensors is part._parameters else fake
                    )


def followed(
    prepared: nn.Module, form: Callable[[], nn.Module], shape: tuple[int, ...], precision: str
) -> tuple[list[str], Tensor]:
    """Operations of a call by the engine, and its result, without values."""
    half, watched = precision != "fp32", Watched()
    dtype = DTYPES[precision] if half else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda: True)
        with FakeTensorMode(), torch.no_grad(), Indexing():
            move_to_nowhere(prepared)
            codes = torch.empty(shape, dtype=torch.uint8, device="cuda")
            with torch.autocast("cuda", dtype=dtype, enabled=half, cache_enabled=False), watched:
                out: Tensor = form()(codes)
    assert not any(getattr(m, "_outputs", None) for m in prepared.modules())
    return watched.names, out


def counts(prepared: nn.Module) -> dict[str, int]:
    """Operations that the blocks of a model should call."""
    blocks = [m for m in prepared.modules() if isinstance(m, FusedConv)]
    by_cudnn = sum(block.implementation == "cudnn" for block in blocks)
    first = sum(block.reads_codes for block in blocks)
    found = {"codes_conv": first, "bias_act_pool": by_cudnn}
    return found | {"conv_block": len(blocks) - first - by_cudnn}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "config"), CASES, ids=named)
def test_a_call_stays_on_the_gpu(name: str, config: dict[str, Any], precision: str) -> None:
    model = settle(build(name, **config))
    for kernels in ("auto", mixed(model, "cudnn")):
        prepared = prepare(model, kernels, dtype=DTYPES[precision])
        expected = counts(prepared)
        names, out = followed(prepared, lambda p=prepared: p, (3, model.window), precision)
        assert {name: names.count(name) for name in expected} == expected
        assert out.shape == (3, 1, model.tracks)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "config"), overlaps.CASES, ids=named)
def test_a_block_stays_on_the_gpu(name: str, config: dict[str, Any], precision: str) -> None:
    model = overlaps.model_of(name, config)
    for stride, kernels in ((5, "auto"), (8, mixed(model, "cudnn"))):
        prepared = prepare(model, kernels, dtype=DTYPES[precision])
        sharing = Sharing(prepared, stride, 2 * phases_of(model, stride))
        first = next(m for m in prepared.modules() if isinstance(m, FusedConv))
        names, out = followed(sharing, lambda s=sharing: s, (sharing.bases,), precision)
        # Of the block, and of the edges where there is padding.
        assert names.count("codes_conv") == 1 + sum(zeros > 0 for zeros in first.padding)
        assert out.shape == (2 * phases_of(model, stride), 1, model.tracks)
