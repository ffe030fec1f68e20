from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from genomepred.lowering.fuse import prepare
from genomepred.models.card import difference
from genomepred.models.nucleic_transformer import GeM, NucleicTransformer
from tests.models import by_hand

TINY = {"dim": 8, "heads": 2, "layers": 2, "feedforward": 12}


def codes_like(batch: int, window: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (batch, window), dtype=torch.uint8, generator=generator)


def promoters(shared_data: Path, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first labeled E. coli sequences: codes ``[rows, 81]`` and labels ``[rows]``."""
    with gzip.open(shared_data / "labels" / "ecoli_promoters_81bp.csv.gz", "rt") as file:
        table = list(csv.DictReader(file))
    chosen = table[:: len(table) // rows][:rows]
    codes = [["ACGT".index(base) for base in row["seqs"].upper()] for row in chosen]
    labels = [float(row["labels"]) for row in chosen]
    return torch.tensor(codes, dtype=torch.uint8), torch.tensor(labels)


def forward_by_hand(model: NucleicTransformer, codes: torch.Tensor) -> np.ndarray:
    p = by_hand.parameters_of(model)
    window, dim = len(codes), model.embedding.embedding_dim
    angles = np.arange(window)[:, None] / 10_000 ** (np.arange(0, dim, 2) / dim)
    positions = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(window, dim)
    x = p["embedding.weight"][codes.numpy()] + positions
    joined = [by_hand.conv(p, f"aggregation.convs.{i}", x) for i in range(2)]
    x = by_hand.layer_norm(p, "aggregation.norm", np.concatenate(joined), 1e-5)
    for i in range(2):
        x = by_hand.post_norm_layer(p, f"transformer.{i}", x, heads=2)
    exponent = p["mean.p"][0]
    pooled = (np.maximum(x, 1e-6) ** exponent).mean(0) ** (1 / exponent)
    return by_hand.linear(p, "linear", pooled[None])


def test_forward_pass_by_hand() -> None:
    model = by_hand.spread(NucleicTransformer(9, 3, kmers=(3, 4), **TINY))
    codes = codes_like(4, 9)
    assert (codes == 4).any()
    expected = np.stack([forward_by_hand(model, window) for window in codes])
    np.testing.assert_allclose(model(codes).detach(), expected, atol=1e-6)


def test_parameter_counts_are_those_of_the_docstring() -> None:
    def count(dim: int, kmers: tuple[int, ...]) -> int:
        model = NucleicTransformer(81, dim=dim, kmers=kmers)
        return sum(parameter.numel() for parameter in model.parameters())

    layer = 263_168 + 1_050_880 + 1_024
    assert 6 * layer == 7_890_432
    assert count(256, (10,)) == 8_548_098 == 1_280 + 655_616 + 512 + 6 * layer + 258
    assert count(256, (10, 13, 20)) == 10_711_298 == 1_280 + 2_818_816 + 512 + 6 * layer + 258
    layer = 1_050_624 + 2_099_712 + 2_048
    assert count(512, (10,)) == 21_540_354 == 2_560 + 2_621_952 + 1_024 + 6 * layer + 514


def test_parameter_count_follows_the_formula() -> None:
    d, f, kmers, layers, tracks = 8, 12, (3, 5), 2, 3
    model = NucleicTransformer(9, tracks, kmers=kmers, **TINY)
    aggregation = sum(k * d**2 + d for k in kmers) + 2 * d
    layer = (4 * d**2 + 4 * d) + (2 * d * f + f + d) + 4 * d
    total = 5 * d + aggregation + layers * layer + 1 + tracks * (d + 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == total


@pytest.mark.parametrize("window", [7, 20, 81])
@pytest.mark.parametrize("tracks", [1, 2])
def test_any_window_and_a_batch_of_one(window: int, tracks: int) -> None:
    model = NucleicTransformer(window, tracks, kmers=(3, 7), **TINY).eval()
    codes = codes_like(5, window)
    together = model(codes)
    assert together.shape == (5, 1, tracks)
    alone = torch.cat([model(codes[i : i + 1]) for i in range(5)])
    assert torch.allclose(alone, together, rtol=0, atol=1e-6)
    assert torch.equal(model.body(model.encode(codes)), together)
    reversed_batch = model(codes.flip(0)).flip(0)
    assert torch.allclose(reversed_batch, together, rtol=0, atol=1e-6)


def test_an_unknown_base_has_an_embedding_of_its_own() -> None:
    model = NucleicTransformer(9, kmers=(3,), **TINY).eval()
    known, unknown = codes_like(1, 9) % 4, codes_like(1, 9) % 4
    unknown[0, 4] = 4
    before = model(known), model(unknown)
    with torch.no_grad():
        model.embedding.weight[4] += 1
    assert torch.equal(model(known), before[0])
    assert not torch.allclose(model(unknown), before[1], atol=1e-4)


def test_order_matters() -> None:
    model = NucleicTransformer(12, kmers=(1,), **TINY).eval()
    codes = codes_like(1, 12)
    assert not torch.allclose(model(codes), model(codes.flip(1)), atol=1e-4)


def test_every_base_has_a_gradient_and_it_is_the_slope() -> None:
    model = by_hand.spread(NucleicTransformer(6, kmers=(2, 3), **TINY))
    x = model.encode(codes_like(2, 6)).detach().requires_grad_()
    assert torch.autograd.gradcheck(model.body, x)
    (slopes,) = torch.autograd.grad(model.body(x).sum(), x)
    assert slopes.shape == (2, 4, 6)
    assert (slopes.abs().amax(1) > 1e-6).all()


def test_attention_is_given_per_layer_for_all_kmers() -> None:
    model = NucleicTransformer(20, kmers=(3, 7), **TINY).eval()
    weights = model.attention(codes_like(3, 20))
    assert [w.shape for w in weights] == [(3, 2, 18 + 14, 18 + 14)] * 2
    for of_layer in weights:
        assert torch.allclose(of_layer.sum(3), torch.ones(3, 2, 32), atol=1e-5)


def test_values_through_the_weights_path_on_real_promoters(shared_data: Path) -> None:
    torch.manual_seed(0)
    model = NucleicTransformer(81).eval()
    codes, _ = promoters(shared_data, 8)
    with torch.no_grad():
        encoded, weights = model.transformer.with_weights(model._kmers(model.encode(codes)))
        values = model.linear(model.mean(encoded)).unsqueeze(1)
        assert torch.allclose(values, model(codes), rtol=0, atol=1e-5)
        given = model.attention(codes)
    assert len(given) == 6
    assert all(torch.equal(a, b) for a, b in zip(given, weights, strict=True))


def test_real_promoters_can_be_learned(shared_data: Path) -> None:
    torch.manual_seed(0)
    codes, labels = promoters(shared_data, 32)
    assert 0.2 < labels.mean() < 0.8
    model = NucleicTransformer(81, dim=32, heads=4, layers=2, feedforward=64, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(codes)[:, 0, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted = model.eval()(codes)[:, 0, 0] > 0
    assert (predicted == labels.bool()).float().mean() > 0.95
    assert model.mean.p.item() != 3.0


def test_dropout_acts_in_training_only() -> None:
    model = NucleicTransformer(20, kmers=(3,), dropout=0.3, **TINY)
    codes = codes_like(4, 20)
    assert not torch.equal(model.train()(codes), model(codes))
    assert torch.equal(model.eval()(codes), model(codes))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1.6e-2), (torch.float16, 2e-3)])
def test_lower_precisions_stay_within_the_tolerance(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = NucleicTransformer(81, dim=64, layers=2, feedforward=64).eval()
    codes = codes_like(16, 81)
    with torch.no_grad():
        expected = model(codes)
        with torch.autocast("cpu", dtype=dtype):
            found = model(codes).float()
    assert difference(found, expected) < tolerance
    assert not torch.equal(found, expected)


def test_the_prepared_form_equals_the_model() -> None:
    model = NucleicTransformer(21, kmers=(3, 6), **TINY).eval()
    codes = codes_like(9, 21)
    for kernels in ("torch", "auto"):
        assert torch.allclose(prepare(model, kernels)(codes), model(codes), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_compiled_form_equals_the_model() -> None:
    torch.manual_seed(0)
    model = NucleicTransformer(81, dim=64, layers=2, feedforward=64).eval()
    codes = codes_like(4, 81)
    with torch.no_grad():
        found = torch.compile(model, dynamic=False)(codes)
        assert torch.allclose(found, model(codes), rtol=0, atol=1e-5)


def test_positions_are_not_part_of_the_weights() -> None:
    names = NucleicTransformer(20, kmers=(3,), **TINY).state_dict()
    assert "embedding.weight" in names
    assert not [name for name in names if "position" in name or "encoder" in name]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kmers": (3, 21)}, r"kmers \[3, 21\] must be at least one of 1 to window 20"),
        ({"kmers": ()}, r"kmers \[\]"),
        ({"kmers": (0,)}, r"kmers \[0\]"),
        ({"dim": 12, "heads": 8}, "8 heads do not divide 12 channels"),
        ({"dim": 9, "heads": 3}, "even number of channels, not 9"),
    ],
)
def test_sizes_that_cannot_work_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NucleicTransformer(20, **{**TINY, **config})


# Generalised mean


def test_generalised_mean_lies_between_mean_and_maximum() -> None:
    x = torch.tensor([[[1.0], [2.0], [-3.0], [4.0]]])  # -3 counts as 1e-6
    assert GeM(p=1.0)(x).item() == pytest.approx((1 + 2 + 4) / 4, rel=1e-5)
    assert GeM(p=3.0)(x).item() == pytest.approx(((1 + 8 + 64) / 4) ** (1 / 3), rel=1e-6)
    assert GeM(p=40.0)(x).item() == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_generalised_mean_of_nothing_above_zero_is_finite(dtype: torch.dtype) -> None:
    x = torch.full((2, 5, 3), -1.0, dtype=dtype, requires_grad=True)
    pool = GeM()
    found = pool(x)
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx(np.full((2, 3), 1e-6), rel=0.05)
    found.sum().backward()
    assert torch.isfinite(pool.p.grad).all()
