from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.errors import DeviceError, ModelError, PrecisionError
from genomepred.inference import numerics
from genomepred.inference.engine import (
    Batches,
    Engine,
    Numerics,
    compute_batch,
    find_device,
)
from genomepred.inference.numerics import (
    Candidates,
    GuardWindows,
    Subject,
    decide,
    fastest,
    ways_to_try,
)
from genomepred.lowering.fuse import REFERENCE, are_measured, kernels_of, prepare, resolve_kernels
from genomepred.lowering.receptive_field import multiply_adds
from genomepred.lowering.shared import Sharing, Stretches, StretchSizes
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import load_model
from genomepred.sequences.grid import Geometry

CPU = torch.device("cpu")
BATCH = 16
OURS, COMPILED_OURS = ("kmers", "direct"), ("compiled", "kmers", "direct")
PREPARED = r"the prepared model \(kmers, direct\)"
STRIDE = 20  # of the tiny model's card


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model)


def make_engine(
    model, *, strand="forward", kernels=REFERENCE, precision="fp32", device=CPU, **card
):
    numerics = Numerics(precision, kernels, BATCH, strand)
    return Engine(model, replace(model.card, **card), model.card.geometry(), numerics, device)


def batches_of(windows: np.ndarray, needed=None) -> Batches:
    count, width = windows.shape
    if needed is None:
        needed = np.ones(count // BATCH, bool)
    starts = np.arange(count, dtype=np.int64) * width
    return Batches(torch.from_numpy(windows.reshape(-1).copy()), starts, width, np.array(needed))


def random_windows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, (count, 100), dtype=np.uint8)


def test_predictions_are_those_of_the_plain_model(model):
    windows = random_windows(3 * BATCH)
    with torch.no_grad():
        wanted = torch.sigmoid(model(torch.from_numpy(windows))).numpy()
    found = make_engine(model).submit(batches_of(windows))()
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert wanted.std() > 0.01  # else the comparison would say nothing


# All that the tiny model's two blocks can be computed by, and no kernels of ours at all.
KERNELS = (("kmers", "direct"), ("kmers", "onednn"), ("torch",))


@pytest.mark.parametrize("kernels", [REFERENCE, *KERNELS])
def test_a_window_depends_on_its_slot_and_on_no_other_window(model, kernels):
    """Resumed, sharded and BED runs are equal to the bit because of it."""
    engine = make_engine(model, kernels=kernels)
    windows, others = random_windows(BATCH, 1), random_windows(BATCH, 2)
    alone = engine.submit(batches_of(windows))()
    for slot in range(BATCH):
        mixed = others.copy()
        mixed[slot] = windows[slot]
        assert engine.submit(batches_of(mixed))()[slot].tobytes() == alone[slot].tobytes()


def test_strided_and_gathered_windows_agree_to_the_bit(model):
    engine = make_engine(model)
    codes = torch.from_numpy(random_windows(10).reshape(-1))
    starts = np.arange(BATCH, dtype=np.int64) * 7
    strided = engine.submit(Batches(codes, starts, 7, np.array([True])))()
    gathered = engine.submit(Batches(codes, starts, 0, np.array([True])))()
    assert strided.tobytes() == gathered.tobytes()


def test_batches_that_are_not_needed_are_not_computed(model):
    engine = make_engine(model)
    calls = []
    engine._model.register_forward_hook(lambda *_: calls.append(1))
    windows = random_windows(3 * BATCH)
    part = engine.submit(batches_of(windows, [False, True, False]))()
    assert len(calls) == 1
    whole = engine.submit(batches_of(windows))()
    np.testing.assert_array_equal(part[BATCH : 2 * BATCH], whole[BATCH : 2 * BATCH])


def reverse_complement(windows: np.ndarray) -> np.ndarray:
    return np.array([3, 2, 1, 0, 4], np.uint8)[windows][:, ::-1]


def test_strands(model):
    windows = random_windows(BATCH)
    forward = make_engine(model).submit(batches_of(windows))()
    turned = make_engine(model).submit(batches_of(reverse_complement(windows)))()
    reverse = make_engine(model, strand="reverse").submit(batches_of(windows))()
    mean = make_engine(model, strand="mean").submit(batches_of(windows))()
    each = make_engine(model, strand="each").submit(batches_of(windows))()
    assert reverse.tobytes() == turned.tobytes()
    np.testing.assert_array_equal(mean, (forward + turned) / 2)
    np.testing.assert_array_equal(each, np.concatenate([forward, turned], axis=2))
    assert np.abs(forward - turned).max() > 0.01


class Positions(nn.Module):
    """Two bins of two tracks: what each half of the window holds of A and of T."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, codes):
        halves = codes.view(len(codes), 2, -1)
        counts = [(halves == code).sum(dim=2) for code in (0, 3)]
        return torch.stack(counts, dim=2).float() * self.weight


def positions_card(**fields) -> Card:
    return Card(
        **{
            **{"name": "positions", "architecture": "linear", "config": {}},
            **{"window": 10, "bins": 2, "bin_size": 5, "stride": 10, "activation": "none"},
            **{"tracks": (Track("A"), Track("T")), **fields},
        }
    )


def test_reverse_flips_bins_and_permutes_tracks():
    card = positions_card(reverse_tracks=(1, 0))
    geometry = Geometry(10, 10, bins=2)
    windows = np.random.default_rng(0).integers(0, 4, (4, 10), dtype=np.uint8)
    batches = Batches(
        torch.from_numpy(windows.reshape(-1)), np.arange(4) * 10, 10, np.array([True])
    )
    results = {
        strand: Engine(
            Positions(), card, geometry, Numerics("fp32", REFERENCE, 4, strand), CPU
        ).submit(batches)()
        for strand in ("forward", "reverse")
    }
    # A of the reverse complement's second half is T of the forward first half: with the tracks
    # swapped back, both strands count the same.
    np.testing.assert_array_equal(results["forward"], results["reverse"])
    plain = Engine(
        Positions(), positions_card(), geometry, Numerics("fp32", REFERENCE, 4, "reverse"), CPU
    )
    np.testing.assert_array_equal(plain.submit(batches)(), results["forward"][..., ::-1])


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("none", lambda x: x),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("softplus", lambda x: np.log1p(np.exp(x))),
        ("exp", np.exp),
        ("softmax", lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    ],
)
def test_activations(activation, function):
    geometry = Geometry(10, 10, bins=2)
    windows = np.random.default_rng(0).integers(0, 4, (4, 10), dtype=np.uint8)
    batches = Batches(
        torch.from_numpy(windows.reshape(-1)), np.arange(4) * 10, 10, np.array([True])
    )
    numerics = Numerics("fp32", REFERENCE, 4, "forward")
    raw, found = (
        Engine(Positions(), positions_card(activation=name), geometry, numerics, CPU).submit(
            batches
        )()
        for name in ("none", activation)
    )
    np.testing.assert_allclose(found, function(raw), rtol=1e-5)


def test_a_model_that_does_not_keep_its_cards_promise_is_refused():
    with pytest.raises(
        ModelError, match=r"returns .* = \[4, 2, 2\], its card promises \[4, 2, 1\]"
    ):
        Engine(
            Positions(),
            positions_card(tracks=(Track("A"),)),
            Geometry(10, 10, bins=2),
            Numerics("fp32", REFERENCE, 4, "forward"),
            CPU,
        )


@pytest.mark.parametrize("kernels", KERNELS)
def test_kernels_agree_with_the_model_as_written(model, kernels):
    windows = random_windows(2 * BATCH)
    reference = make_engine(model).submit(batches_of(windows))()
    engine = make_engine(model, kernels=kernels)
    assert kernels_of(engine._model) == kernels
    np.testing.assert_allclose(engine.submit(batches_of(windows))(), reference, atol=2e-6)


@pytest.mark.parametrize(("precision", "within"), [("fp16", 2e-3), ("bf16", 1.6e-2)])
def test_kernels_in_half_precision(model, precision, within):
    windows = random_windows(BATCH)
    reference = make_engine(model).submit(batches_of(windows))()
    half = make_engine(model, kernels=("kmers", "direct"), precision=precision)
    found = half.submit(batches_of(windows))()
    assert 0 < (np.abs(found - reference) / (1 + np.abs(reference))).max() <= within


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        (("kmers",), "implementations of the model's 2 blocks"),
        (("triton", "triton"), "'triton' does not compute codes_conv on cpu"),
        (("onednn",), "onednn"),
        (("conv2d",), "conv2d"),
    ],
)
def test_kernels_that_are_not_the_models_are_refused(model, kernels, message):
    with pytest.raises(ModelError, match=message):
        make_engine(model, kernels=kernels)


def broken(model, kernels="auto", *, dtype=torch.float32):
    return nn.Sequential(prepare(model, kernels, dtype=dtype), nn.Tanh())


def test_kernels_that_compute_something_else_are_not_used(model, monkeypatch):
    for place in ("lowering.fuse", "inference.engine"):
        monkeypatch.setattr(f"genomepred.{place}.prepare", broken)
    assert choose(model).kernels == REFERENCE
    with pytest.raises(
        PrecisionError, match=rf"--kernels cpu: {PREPARED} differs .* 1e-05; use --k"
    ):
        choose(model, kernels="cpu")


def test_a_model_that_cannot_be_rewritten_runs_as_written(model, monkeypatch):
    def refuse(_):
        raise TypeError("cannot pickle this")

    monkeypatch.setattr(model, "__deepcopy__", refuse, raising=False)
    assert choose(model).kernels == REFERENCE
    with pytest.raises(ModelError, match="cannot be rewritten: cannot pickle this"):
        choose(model, kernels="cpu")


@pytest.mark.parametrize("asked", ["triton", "cudnn"])
def test_kernels_of_a_gpu_are_refused_on_a_cpu(model, asked):
    with pytest.raises(DeviceError, match=f"--kernels {asked}: {asked} kernels do not run on cpu"):
        choose(model, kernels=asked)


def test_without_kernels_for_a_device_torch_computes(model, monkeypatch):
    monkeypatch.setattr("genomepred.kernels.dispatch.obstacle", lambda *_: "no such thing here")
    with pytest.warns(UserWarning, match="torch's convolutions are used: no such thing here"):
        assert resolve_kernels(model, "auto", CPU, "fp32") == ("torch",)


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ({OURS: 1.0, REFERENCE: 0.9, COMPILED_OURS: 0.95}, OURS),
        ({OURS: 1.0, REFERENCE: 1.0, COMPILED_OURS: 0.8}, COMPILED_OURS),
        ({OURS: 1.0, REFERENCE: 0.8, COMPILED_OURS: 0.75}, REFERENCE),
    ],
)
def test_a_later_way_is_taken_only_where_it_is_clearly_faster(times, wanted):
    assert fastest(times, times.__getitem__) == wanted


def test_a_way_that_does_not_run_is_none_unless_it_must():
    def seconds(kernels):
        if kernels == OURS:
            raise ModelError("only as written")
        if kernels == COMPILED_OURS:
            raise RuntimeError("no compiler\nsecond line")
        return 1.0

    with pytest.warns(UserWarning, match="torch.compile is not used: no compiler$"):
        assert fastest([OURS, REFERENCE, COMPILED_OURS], seconds) == REFERENCE
    with pytest.raises(RuntimeError, match="no compiler"):
        fastest([REFERENCE], lambda kernels: seconds(COMPILED_OURS))


def ways(model, device, windows, used=OURS):
    subject = Subject(model, model.card, model.card.geometry(), torch.device(device))
    return list(ways_to_try(subject, Candidates(windows=windows), "fp32", used))


def test_only_long_runs_on_a_cpu_try_anything_but_the_table(model):
    assert ways(model, "cpu", 0) == [OURS]
    assert ways(model, "cpu", 1e9) == [OURS, REFERENCE, ("compiled", "torch")]


def test_a_gpu_tries_what_nobody_has_measured(model, monkeypatch):
    ours, cudnn = ("triton", "triton"), ("triton", "cudnn")
    monkeypatch.setattr(numerics, "_prepared", lambda *_: None if measured is None else model)
    monkeypatch.setattr(numerics, "are_measured", lambda *_: measured)
    monkeypatch.setattr(numerics, "resolve_kernels", lambda *_: cudnn)
    measured = True
    assert ways(model, "cuda", 0, ours) == [ours]
    long = [(("compiled", *ours)), ("compiled", "torch")]
    assert ways(model, "cuda", 1e12, ours) == [ours, REFERENCE, *long]
    measured = False
    assert ways(model, "cuda", 0, ours) == [ours, cudnn, REFERENCE]
    assert ways(model, "cuda", 1e12, ours) == [ours, cudnn, REFERENCE, *long]
    assert ways(model, "cuda", 0, REFERENCE) == [REFERENCE]


def test_a_probe_times_the_ways_and_takes_one_of_them(model, monkeypatch):
    monkeypatch.setitem(numerics.PROBE_FROM_MULTIPLY_ADDS, "cpu", 0)
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    tried = []
    seconds = Engine.seconds_per_batch

    def counted(engine):
        tried.append(engine.numerics.kernels)
        return seconds(engine)

    monkeypatch.setattr(Engine, "seconds_per_batch", counted)
    assert choose(model, windows=1e9).kernels in tried
    assert tried == [OURS, REFERENCE, ("compiled", "torch")]
    assert choose(model, windows=1e9, kernels="cpu").kernels == OURS
    assert choose(model, windows=1e9, kernels="reference").kernels == REFERENCE
    assert len(tried) == 3


def test_entries_of_the_table_tell_whether_they_are_measured(model):
    assert are_measured(prepare(model), torch.float32)


def test_a_recording_that_fails_is_told_and_changes_nothing(model, monkeypatch):
    engine = make_engine(model, kernels=("kmers", "direct"))
    wanted = engine.submit(batches_of(random_windows(BATCH)))()

    def no_stream(device):
        raise RuntimeError("no stream here\nsecond line")

    monkeypatch.setattr("torch.cuda.current_stream", no_stream)
    with pytest.warns(UserWarning, match="run without a CUDA graph: no stream here$"):
        engine._record()
    assert engine.submit(batches_of(random_windows(BATCH)))().tobytes() == wanted.tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("strand", ["forward", "each"])
def test_a_cuda_graph_predicts_what_single_launches_do(model, strand, precision):
    device = torch.device("cuda:0")
    kernels = resolve_kernels(model, "auto", device, precision)
    engine = make_engine(model, strand=strand, kernels=kernels, precision=precision, device=device)
    assert engine._graph is not None
    three = [batches_of(random_windows(3 * BATCH, seed)) for seed in range(3)]
    replayed = [engine.submit(batches)().copy() for batches in three]
    assert np.abs(replayed[0] - replayed[1]).max() > 0.01
    engine._graph = None
    for batches, found in zip(three, replayed, strict=True):
        assert engine.submit(batches)().tobytes() == found.tobytes()


@pytest.mark.gpu
def test_a_model_that_waits_for_the_host_runs_without_a_cuda_graph(model):
    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(100, 1)

        def forward(self, codes):
            values = self.inner(codes.float())[:, None]
            return values * (1.0 if values.max().item() > 0 else 2.0)

    device = torch.device("cuda:0")
    waiting, stream = Waiting().to(device), torch.cuda.current_stream(device)
    waiting.card = replace(model.card, activation="none")
    with pytest.warns(UserWarning, match="run without a CUDA graph"):
        engine = make_engine(waiting, kernels=("torch",), device=device)
    assert torch.cuda.current_stream(device) == stream
    windows = random_windows(BATCH)
    with torch.no_grad():
        wanted = waiting(torch.from_numpy(windows).to(device)).cpu().numpy()
    np.testing.assert_allclose(engine.submit(batches_of(windows))(), wanted, atol=1e-4)


@pytest.mark.slow
def test_the_compiled_model_agrees_and_never_compiles_again(model):
    windows = random_windows(2 * BATCH)
    reference = make_engine(model, strand="mean").submit(batches_of(windows))()
    engine = make_engine(model, strand="mean", kernels=("compiled", "torch"))
    np.testing.assert_allclose(engine.submit(batches_of(windows))(), reference, atol=1e-5)
    engine._buffer = engine._buffer[:5]
    with pytest.raises(RuntimeError, match="recompile"):
        engine._predict_buffer()


def sample(count: int, consecutive: bool) -> Batches:
    """Random windows: any compute batch, or as many neighbors on the grid."""
    if not consecutive:
        return batches_of(random_windows(count), [True])
    codes = torch.from_numpy(random_windows(2 + count * STRIDE // 100).reshape(-1))
    return Batches(codes, np.arange(count, dtype=np.int64) * STRIDE, STRIDE, np.array([True]))


def choose(model, *, precision="auto", kernels="auto", windows=0.0, tolerance=None, stretches=None):
    card = replace(model.card, tolerance=tolerance or model.card.tolerance)
    subject = Subject(model, card, card.geometry(), CPU)
    batch = compute_batch(card.window, "cpu", card.bins)
    guard = GuardWindows(sample(batch, False), stretches and sample(stretches.windows, True))
    return decide(subject, Candidates(precision, kernels, "forward", stretches, windows), guard)


@pytest.fixture
def stretches(model) -> Stretches:
    found = StretchSizes(model, model.card.geometry(), "cpu").choose("share", lambda windows: 1.0)
    assert found is not None
    return found


class Wrong(nn.Module):
    """A shared form whose last window is another one's."""

    def __init__(self, sharing):
        super().__init__()
        self.sharing, self.bases = sharing, sharing.bases

    def forward(self, codes):
        values = self.sharing(codes)
        return torch.cat([values[:-1], values[:1]])


def test_what_is_shared_is_compared_with_the_model_as_written(model, stretches):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        chosen = choose(model, stretches=stretches)
    assert chosen == Numerics("fp32", OURS, stretches.windows, "forward", "share")


def test_a_wrong_shared_form_is_not_used(model, stretches, monkeypatch):
    monkeypatch.setattr(
        "genomepred.inference.engine.Sharing", lambda *given: Wrong(Sharing(*given))
    )
    said = rf"overlap is not shared: {PREPARED} differs .* by [0-9.e-]+ .*allows 1e-05$"
    for asked in ("auto", "cpu"):
        with pytest.warns(UserWarning, match=said) as told:
            chosen = choose(model, kernels=asked, stretches=stretches)
        assert chosen == Numerics("fp32", OURS, 256, "forward", "naive")
        assert len(told) == 1


def test_a_model_as_written_shares_nothing(model, stretches):
    chosen = choose(model, kernels="reference", stretches=stretches)
    assert chosen == Numerics("fp32", REFERENCE, 256, "forward", "naive")


def test_short_runs_on_the_cpu_take_our_kernels_in_fp32(model):
    chosen = choose(model)
    assert (chosen.precision, chosen.kernels) == ("fp32", OURS)
    assert chosen.compute_batch == compute_batch(100, "cpu") == 256


def test_precision_within_tolerance_is_accepted_and_beyond_it_refused(model):
    wide, narrow = ({"fp32": 1e-5, "fp16": 1.0, "bf16": limit} for limit in (0.5, 1e-9))
    assert choose(model, precision="bf16", tolerance=wide).precision == "bf16"
    with pytest.raises(PrecisionError, match=r"bf16 differs from fp32 by .* allows 1e-09"):
        choose(model, precision="bf16", tolerance=narrow)


def test_precision_guard_refuses_what_is_not_finite(model):
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(100, 1)

        def forward(self, codes):
            values = self.inner(codes.float())[:, None]
            return values * (float("nan") if values.dtype == torch.bfloat16 else 1.0)

    overflowing = Overflowing()
    overflowing.card = replace(model.card, tolerance={"fp32": 1.0, "fp16": 1.0, "bf16": 1e9})
    with pytest.raises(PrecisionError, match="by inf"):
        choose(overflowing, precision="bf16")


def test_compute_batch_depends_on_window_bins_and_device_only():
    assert [compute_batch(w, "cpu") for w in (50, 100, 200, 3000, 15_000, 200_000)] == [
        *[256, 256, 256, 16, 4, 1]
    ]
    assert [compute_batch(w, "cpu", 2) for w in (100, 1_400, 5_400, 30_000)] == [64, 4, 1, 1]
    assert compute_batch(100, "cuda") == compute_batch(100, "cuda", 2) == 8192


def test_multiply_adds_are_counted(model):
    # conv 4 -> 8 and 8 -> 8 (k10) over 100 and 50 positions, dense 25 * 8 -> 128 -> 64 -> 1
    wanted = 100 * 4 * 8 * 10 + 50 * 8 * 8 * 10 + 200 * 128 + 128 * 64 + 64
    assert multiply_adds(model, 100) == wanted


def test_unknown_devices_are_refused():
    assert find_device("cpu").type == "cpu"
    for name in ("gpu", "mps", ""):
        with pytest.raises(DeviceError, match="write auto, cpu, cuda or cuda:N"):
            find_device(name)
    if not torch.cuda.is_available():
        assert find_device("auto").type == "cpu"
        with pytest.raises(DeviceError, match="0 CUDA devices"):
            find_device("cuda:0")
