from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genomepred.kernels import dispatch
from genomepred.kernels.dispatch import OPERATIONS, choose, describe_family, explain

ROOT = Path(__file__).parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
TYPES = (torch.float32, torch.float16, torch.bfloat16)
# Compute capability -> family whose entries it takes.
FAMILIES = {
    **{(7, 0): "sm_70", (7, 2): "sm_70", (7, 5): "sm_75"},
    **{(8, 0): "sm_80", (8, 6): "sm_80", (8, 9): "sm_80"},
    **{(9, 0): "sm_90", (10, 0): "sm_100", (12, 0): "sm_100", (13, 0): "sm_100"},
}
IMPLEMENTATIONS = {
    ("cpu", "codes_conv"): {"kmers"},
    ("cpu", "conv_block"): {"direct", "onednn"},
    ("cuda", "codes_conv"): {"triton"},
    ("cuda", "conv_block"): {"triton", "cudnn"},
}


def pretend(patch: pytest.MonkeyPatch, capability: tuple[int, int], triton: bool = True) -> None:
    """A GPU that is not there: the table asks for nothing but its compute capability."""
    patch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    patch.setattr(dispatch, "find_spec", lambda name: object() if triton else None)


def chosen(device: torch.device, dtype: torch.dtype = torch.float32, **fields: Any) -> str:
    shape = {"operation": "conv_block", "channels_in": 64, "channels": 64, "width": 5}
    return choose(**{**shape, **fields}, device=device, dtype=dtype).implementation


def in_half(capability: tuple[int, int]) -> torch.dtype:
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


@given(
    capability=st.sampled_from([None, *FAMILIES]),
    operation=st.sampled_from(OPERATIONS),
    dtype=st.sampled_from(TYPES),
    channels_in=st.integers(1, 5000),
    channels=st.integers(1, 5000),
    width=st.integers(1, 200),
)
def test_every_family_answers_for_any_shape(
    capability: Any, operation: str, dtype: torch.dtype, **shape: int
) -> None:
    device = GPU if capability else CPU
    if capability and capability < (8, 0) and dtype == torch.bfloat16:
        return
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, capability)
        found = choose(operation, device, dtype=dtype, **shape)
    assert found.implementation in IMPLEMENTATIONS[device.type, operation]


@pytest.mark.parametrize("capability", FAMILIES)
def test_families(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability)
    words = describe_family(GPU)
    assert words.split()[0] == FAMILIES[capability]
    named = "nearest below its own compute capability" in words
    assert named == (capability in [(7, 2), (13, 0)])


def test_cpu_by_shape_whatever_the_type() -> None:
    for dtype in TYPES:
        assert describe_family(CPU).startswith("cpu ")
        assert chosen(CPU, dtype, operation="codes_conv", channels=5000) == "kmers"
        assert chosen(CPU, dtype, channels_in=8, channels=8) == "direct"
        assert chosen(CPU, dtype, asked="cpu") == "direct"
        # 2,560 KiB of 64 channels' weights are the most: 160 taps of 64 channels
        assert chosen(CPU, dtype, width=160) == "direct"
        assert chosen(CPU, dtype, width=161) == "onednn"
        assert chosen(CPU, dtype, width=160, channels=1024) == "direct"
        assert chosen(CPU, dtype, width=320, channels=32) == "direct"


@pytest.mark.parametrize("capability", FAMILIES)
def test_gpu_by_family_and_shape(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, capability)
    tensor_cores = capability >= (8, 0)
    half = in_half(capability)
    assert chosen(GPU, half) == ("triton" if tensor_cores else "cudnn")
    assert chosen(GPU, half, channels_in=128, channels=129) == "cudnn"
    assert chosen(GPU, half, channels_in=129, channels=128) == "cudnn"
    assert chosen(GPU, torch.float32) == "cudnn"  # without tensor cores in any of them
    assert chosen(GPU, torch.float32, channels_in=8, channels=16) == "triton"
    assert chosen(GPU, half, asked="triton", channels=5000) == "triton"
    assert chosen(GPU, half, asked="cudnn", channels=8) == "cudnn"
    assert chosen(GPU, half, asked="cudnn", operation="codes_conv") == "triton"


def test_a_cpu_without_fused_multiply_adds_leaves_convolutions_to_onednn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "has_fma", lambda: False)
    shape = {"channels_in": 8, "channels": 16, "width": 5, "dtype": torch.float32}
    assert choose("conv_block", CPU, **shape).implementation == "onednn"
    assert choose("codes_conv", CPU, **shape).implementation == "kmers"


@pytest.fixture
def decided_anew() -> Iterator[None]:
    dispatch.has_fma.cache_clear()
    yield
    dispatch.has_fma.cache_clear()


@pytest.mark.parametrize(
    ("machine", "capability", "named", "features", "has"),
    [
        ("x86_64", "AVX512", None, None, True),
        ("x86_64", "AVX2", None, None, True),
        ("x86_64", "DEFAULT", None, None, False),
        ("aarch64", "DEFAULT", None, None, True),
        ("arm64", "DEFAULT", None, None, True),
        ("x86_64", "AVX512", "generic", None, False),
        ("x86_64", "AVX512", "Generic", None, False),
        ("x86_64", "AVX512", "haswell", None, True),  # Numba takes the host's features
        ("x86_64", "AVX512", "haswell", "+avx,+avx2,+fma", True),
        ("x86_64", "AVX512", "haswell", "+avx,+avx2,-fma", False),
        ("x86_64", "AVX512", None, "+avx,+fma4", False),
        ("x86_64", "AVX512", None, "", False),
        ("x86_64", "DEFAULT", "generic", "+avx,+fma", True),
        ("aarch64", "DEFAULT", None, "+neon", True),
        ("aarch64", "DEFAULT", None, "", False),
    ],
)
def test_fused_multiply_adds_are_those_of_the_cpu_that_is_compiled_for(
    machine: str,
    capability: str,
    named: str | None,
    features: str | None,
    has: bool,
    decided_anew: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    for key, value in (("NUMBA_CPU_NAME", named), ("NUMBA_CPU_FEATURES", features)):
        monkeypatch.delenv(key, raising=False)
        if value is not None:
            monkeypatch.setenv(key, value)
    assert dispatch.has_fma() is has
    shape = {"channels_in": 8, "channels": 16, "width": 5, "dtype": torch.float32}
    found = choose("conv_block", CPU, **shape).implementation
    assert found == ("direct" if has else "onednn")


@pytest.mark.parametrize("capability", [None, *FAMILIES])
def test_every_rule_can_apply_and_says_why(
    capability: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, capability or (0, 0))
    rules = explain(GPU if capability else CPU)
    assert {rule.operation for rule in rules} == set(OPERATIONS)
    for rule in rules:
        assert rule.implementation in IMPLEMENTATIONS["cuda" if capability else "cpu", rule[0]]
        assert len(rule.why) > 40
        # There is no GPU number in the table until one has been measured.
        assert rule.why.startswith("not measured on a GPU: ") == (capability is not None)
    assert [rule.shapes for rule in rules if rule.operation == "conv_block"][-1] == "all others"
    assert len({rule[:2] for rule in rules}) == len(rules)


def test_shapes_are_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [rule.shapes for rule in explain(CPU)] == [
        "all",
        "up to 2,560 KiB of weights for 64 channels",
        "all others",
    ]
    pretend(monkeypatch, (9, 0))
    assert "fp16, bf16, up to 128 channels in and 128 channels out" in {
        rule.shapes for rule in explain(GPU)
    }


def test_table_is_complete_and_uses_known_words_only() -> None:
    table = json.loads((ROOT / "kernels" / "dispatch.json").read_text())
    names = [known["name"] for known in table["families"]]
    sizes = {"channels_in", "channels", "width", "weight_bytes"}
    for entry in table["entries"]:
        bounds = {"dtypes", "at_most", "needs_fma"}
        assert set(entry) <= {"families", "operation", "implementation", "evidence"} | bounds
        assert set(entry["families"]) <= set(names)
        assert set(entry.get("dtypes", [])) <= {"fp32", "fp16", "bf16"}
        assert set(entry.get("at_most", {})) <= sizes
        assert entry["evidence"].strip()
    for name in names:
        for operation in OPERATIONS:
            last = [
                entry
                for entry in table["entries"]
                if name in entry["families"] and entry["operation"] == operation
            ][-1]
            assert not {"dtypes", "at_most", "needs_fma"} & set(last), (name, operation)


@pytest.mark.parametrize(
    ("capability", "fields", "message"),
    [
        (None, {"asked": "triton"}, "triton kernels do not run on cpu; use auto, cpu or reference"),
        (None, {"asked": "cudnn"}, "cudnn kernels do not run on cpu"),
        (None, {"asked": "reference"}, "'reference': one of auto, triton, cudnn, cpu"),
        (None, {"asked": "onednn"}, "'onednn': one of auto, triton, cudnn, cpu"),
        (None, {"dtype": torch.float64}, "not in torch.float64"),
        (None, {"device": torch.device("meta")}, "no kernels for meta; use cpu or cuda"),
        (None, {"operation": "pool"}, "'pool' is none of codes_conv, conv_block"),
        ((9, 0), {"asked": "cpu"}, "cpu kernels do not run on cuda:0; use auto, triton, cudnn"),
        ((6, 1), {}, "has compute capability 6.1, kernels need 7.0 or later; use reference"),
        ((7, 5), {"dtype": torch.bfloat16}, "bfloat16 need 8.0 or later; use fp16 or fp32"),
    ],
)
def test_what_cannot_run_is_refused_in_a_line(
    capability: Any, fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, capability or (0, 0))
    arguments = {"device": GPU if capability else CPU, **fields}
    with pytest.raises(ValueError, match=message.replace("'", "['\"]")) as caught:
        chosen(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", ["auto", "triton", "cudnn"])
def test_a_gpu_without_triton_is_told_what_to_install(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, (9, 0), triton=False)
    with pytest.raises(ValueError, match=r"need triton, .* pip install 'genomepred\[gpu\]'"):
        chosen(GPU, asked=asked)
    with pytest.raises(ValueError, match="need triton"):
        explain(GPU)
