from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.errors import ModelError, PrecisionError
from genomepred.inference import engine, numerics
from genomepred.lowering.shared import StretchSizes
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import check_golden, load_model, save_checkpoint
from genomepred.models.external import External, make_external
from genomepred.models.layers import OneHot

CODE = """
import torch
from torch import nn

class Mean(nn.Module):
    def __init__(self, tracks=2, channels=4):
        super().__init__()
        self.conv = nn.Conv1d(channels, tracks, 3, padding=1)

    def forward(self, x):
        return self.conv(x).mean(2)
"""


def make_card(**changes: Any) -> Card:
    fields: dict[str, Any] = {
        "name": "mine",
        "architecture": "external",
        "config": {},
        "window": 20,
        "bin_size": 20,
        "stride": 20,
        "tracks": (Track("a"), Track("b")),
        "activation": "none",
        "input": "onehot_channels_first",
    }
    return Card(**{**fields, **changes})


def write(folder: Path, code: str = CODE, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(code)
    return path


def returning(folder: Path, expression: str, **card: Any) -> External:
    """A model without parameters that returns an expression of its input ``x``."""
    body = f"    def forward(self, x):\n        return {expression}\n"
    code = "import torch\nfrom torch import nn\n\nclass Some(nn.Module):\n" + body
    return make_external(make_card(**card), str(write(folder, code)))


def codes(n: int = 3) -> torch.Tensor:
    found = np.random.default_rng(0).integers(0, 5, (n, 20), dtype=np.uint8)
    return torch.from_numpy(found)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = make_external(make_card(config={"tracks": 2}), str(write(tmp_path)))
    card = make_card(config={"tracks": 2})
    save_checkpoint(tmp_path / "mine", model, card, codes().numpy())
    return tmp_path / "mine"


# Trust


def test_a_card_alone_never_runs_code(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)  # mine.py lies here, and is not looked for
    with pytest.raises(ModelError, match=r"'mine' comes with its own code.*--trust-code PATH"):
        load_model(checkpoint)


def test_trusted_code_makes_the_model_and_its_weights_keep_their_names(checkpoint: Path) -> None:
    code = checkpoint.parent / "mine.py"
    model = load_model(checkpoint, trust_code=str(code))
    assert set(model.state_dict()) == {"conv.weight", "conv.bias"}
    assert check_golden(model) == 0
    one_hot = OneHot()(codes())
    expected = model.module.conv(one_hot.contiguous()).mean(2)  # type: ignore[operator,union-attr]
    assert torch.equal(model(codes()), expected[:, None])
    assert torch.equal(copy.deepcopy(model)(codes()), model(codes()))


def test_an_installed_module_is_named_with_its_class(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoint.parent, name="some_installed_module.py")
    monkeypatch.syspath_prepend(checkpoint.parent)
    model = load_model(checkpoint, trust_code="some_installed_module:Mean")
    assert isinstance(model, External)
    assert model.code.file == checkpoint.parent / "some_installed_module.py"
    again = load_model(checkpoint, trust_code=str(checkpoint.parent / "mine.py"))
    assert isinstance(again, External)
    assert again.code.sha256 == model.code.sha256


def test_code_for_a_model_of_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leave out --trust-code"):
        load_model("ctcf", trust_code=str(write(tmp_path)))


@pytest.mark.parametrize(
    ("code", "asked", "message"),
    [
        (CODE, "absent.py", "no such file"),
        (CODE, "absent.py:Mean", "no such file"),
        (CODE, "absent_module:Mean", "absent_module: importing it: ModuleNotFoundError"),
        (CODE, "mine.py:Median", "has no class 'Median'; the modules defined there are Mean"),
        (CODE, "mine.py:torch", "has no class 'torch'"),
        (CODE + "class Other(Mean): pass", "mine.py", "does not say which class.* Mean, Other"),
        ("x = 1", "mine.py", "does not say which class it is; .* none"),
        ("def f(:", "mine.py", "mine.py: executing it: SyntaxError"),
        ("import nothing_like_it", "mine.py", "mine.py: executing it: ModuleNotFoundError"),
        ("raise SystemExit('usage')", "mine.py", "mine.py: executing it: SystemExit: usage"),
        ("class Mean:\n    pass", "mine.py:Mean", "makes a Mean, not a nn.Module"),
        (CODE.replace("tracks=2,", "trucks,"), "mine.py", "config: .* arguments are trucks"),
        (CODE.replace("(channels", "(-1"), "mine.py", "mine.py: called with {}: "),
    ],
)  # fmt: skip
def test_wrong_code_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, asked: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, code)
    with pytest.raises(ModelError, match=message) as caught:
        make_external(make_card(), asked)
    assert "\n" not in str(caught.value)


# Inputs


def test_channels_and_codes_are_what_the_card_says(tmp_path: Path) -> None:
    encoder = OneHot("TGCA", "uniform")
    first = returning(tmp_path, "x", base_order="TGCA", n_policy="uniform", bins=4, bin_size=5)
    x = first.encode(codes())
    assert torch.equal(x, encoder(codes()))
    last = make_external(
        make_card(input="onehot_channels_last", base_order="TGCA"),
        str(write(tmp_path, _seen("x.shape[1:] == (20, 4) and x.is_contiguous()"))),
    )
    assert last(codes()).all()
    plain = make_external(
        make_card(input="codes", base_order="TGCA"),
        str(write(tmp_path, _seen("x.dtype == torch.int64 and x[0].tolist() == [3, 2, 1, 0] * 4"
                                  " + [4] * 4"))),
    )  # fmt: skip
    assert plain(torch.tensor([[0, 1, 2, 3] * 4 + [4] * 4], dtype=torch.uint8)).all()


def _seen(condition: str) -> str:
    return (
        "import torch\nfrom torch import nn\n\nclass Some(nn.Module):\n"
        f"    def forward(self, x):\n        good = {condition}\n"
        "        return torch.full((len(x), 2), float(good))\n"
    )


# Outputs


@pytest.mark.parametrize(
    ("expression", "card"),
    [
        ("x.sum((1, 2))", {"tracks": (Track("a"),)}),
        ("x[:, :2].sum(2)", {}),
        ("x[:, :2].sum(2)[:, None]", {}),
        ("x[:, :2].transpose(1, 2)[:, 5:15]", {"crop": 5, "bins": 10, "bin_size": 1, "stride": 10}),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_become_bins_and_tracks(
    tmp_path: Path, expression: str, card: dict[str, Any], batch: int
) -> None:
    model = returning(tmp_path, expression, **card)
    x = OneHot()(codes(batch)).contiguous()
    expected = eval(expression, {"x": x})
    assert model(codes(batch)).shape == (batch, model.bins, model.tracks)
    assert torch.equal(model(codes(batch)).flatten(), expected.flatten())


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("x", r"\[3, 4, 20\]"),
        ("x.sum((1, 2))", r"\[3\]"),  # two tracks
        ("x[:, :2].sum((0, 2))", r"\[2\]"),
        ("x.sum()", r"\[\]"),
        ("(x, x)", "a tuple"),
        ("None", "a NoneType"),
    ],
)
def test_other_outputs_are_refused_with_what_is_needed(
    tmp_path: Path, expression: str, found: str
) -> None:
    model = returning(tmp_path, expression)
    needed = r"1 bins and 2 tracks, so return \[3, 1, 2\] or \[3, 2\]"
    with pytest.raises(ModelError, match=rf"mine\.py: the model returns {found} for 3.*{needed}"):
        model(codes())


def test_a_failure_of_the_users_code_is_named_with_its_file(tmp_path: Path) -> None:
    model = returning(tmp_path, "x @ x")
    with pytest.raises(ModelError, match=r"mine\.py: called with \[3, 4, 20\]: RuntimeError: "):
        model(codes())


def test_weights_that_share_memory_are_stored(tmp_path: Path) -> None:
    code = (
        "from torch import nn\n\nclass Tied(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Linear(4, 4)\n        self.b = nn.Linear(4, 4)\n"
        "        self.b.weight = self.a.weight\n"
        "    def forward(self, x):\n        return self.b(self.a(x.mean(2)))[:, :2]\n"
    )
    model = make_external(make_card(), str(write(tmp_path, code)))
    save_checkpoint(tmp_path / "tied", model, make_card(), codes().numpy())
    loaded = load_model(tmp_path / "tied", trust_code=str(tmp_path / "mine.py"))
    assert torch.equal(loaded(codes()), model(codes()))
    assert isinstance(loaded.module, nn.Module)


# Forms of the engine

NETWORKS = {
    # As a user writes them: only what no form may change is `forward`.
    "padded sequential": """
        self.layers = nn.Sequential(
            nn.Conv1d(4, 8, 5, padding=2), nn.BatchNorm1d(8), nn.LeakyReLU(0.1),
            nn.Conv1d(8, 8, 3, padding='same', dilation=2), nn.ReLU())
        self.last = nn.Conv1d(8, 2, 1)
    def forward(self, x):
        return self.last(self.layers(x)).mean(2)
""",
    "pre-activation": """
        self.norm, self.act = nn.BatchNorm1d(4), nn.LeakyReLU(0.1)
        self.conv = nn.Conv1d(4, 4, 5, padding=2)
        self.last = nn.Conv1d(4, 2, 1)
    def forward(self, x):
        return self.last(x + self.conv(self.act(self.norm(x)))).mean(2)
""",
    "view of a convolution": """
        self.conv, self.last = nn.Conv1d(4, 8, 5, padding=2), nn.Linear(160, 2)
    def forward(self, x):
        return self.last(self.conv(x).view(len(x), -1))
""",
    "use of a layer's weight": """
        self.conv = nn.Conv1d(4, 2, 5, padding=2)
    def forward(self, x):
        return self.conv(x).mean(2) + self.conv.weight.sum()
""",
    "convolution of its own kind": """
        class Scaled(nn.Conv1d):
            def forward(self, x):
                return 5 * super().forward(x)
        self.conv = Scaled(4, 2, 5)
    def forward(self, x):
        return self.conv(x).mean(2)
""",
    "convolution that is changed as it is called": """
        self.conv = nn.Conv1d(4, 2, 5)
        self.conv.register_forward_hook(lambda layer, x, y: 7 * y)
    def forward(self, x):
        return self.conv(x).mean(2)
""",
    "no parameters": """
        self.register_buffer('motif', torch.randn(2, 4, 5))
    def forward(self, x):
        return nn.functional.conv1d(x, self.motif).amax(2)
""",
    "cannot be copied": """
        self.conv = nn.Conv1d(4, 2, 5)
        self.cache = self.conv.weight * 2
    def forward(self, x):
        return self.conv(x).mean(2)
""",
}

# What each is computed by where nothing is probed: `torch` is the prepared form without a block.
COMPUTED_BY = {
    "padded sequential": (
        "direct",
        "direct",
        "direct",
    ),
    "pre-activation": ("direct", "direct"),
    "view of a convolution": ("reference",),
    "use of a layer's weight": ("reference",),
    "convolution of its own kind": ("torch",),
    "convolution that is changed as it is called": ("torch",),
    "no parameters": ("torch",),
    "cannot be copied": ("reference",),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("probing", [False, True])
def test_whatever_a_run_is_computed_by_the_numbers_are_the_modules_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, probing: bool
) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    limit = {"cpu": 0 if probing else np.inf}
    monkeypatch.setattr(numerics, "PROBE_FROM_MULTIPLY_ADDS", limit)
    torch.manual_seed(0)
    head = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()"
    code = f"import torch\nfrom torch import nn\n\n{head}{NETWORKS[name]}"
    model = make_external(make_card(), str(write(tmp_path, code))).eval()
    batch = engine.compute_batch(20, "cpu")
    windows = np.random.default_rng(0).integers(0, 5, (batch, 20), dtype=np.uint8)
    starts = np.arange(batch, dtype=np.int64) * 20
    batches = engine.Batches(torch.from_numpy(windows.reshape(-1)), starts, 20, np.array([True]))
    cpu, geometry = torch.device("cpu"), make_card().geometry()
    subject = numerics.Subject(model, make_card(), geometry, cpu)
    guard = numerics.GuardWindows(batches)
    chosen = numerics.decide(subject, numerics.Candidates(windows=1), guard)
    found = subject.engine(chosen).submit(batches)()
    with torch.no_grad():
        expected = model(torch.from_numpy(windows)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    only_as_written = {"use of a layer's weight", "cannot be copied"}  # not even compiled
    if not probing or name in only_as_written:
        assert chosen.kernels == COMPUTED_BY[name]


# Reads what a prepared convolution does not have.
READS_STRIDE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 2, 9, padding=4)
    def forward(self, x):
        return self.conv(x)[:, :, 4:-4].transpose(1, 2) * self.conv.stride[0]
"""


def test_a_module_of_many_bins_that_only_runs_as_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    card = make_card(window=68, crop=4, bins=60, bin_size=1, stride=60)
    model = make_external(card, str(write(tmp_path, READS_STRIDE))).eval()
    cpu, geometry = torch.device("cpu"), card.geometry()
    cause = "'FusedChain' object has no attribute 'stride'"

    def sample(windows: int) -> engine.Batches:
        codes = np.random.default_rng(0).integers(0, 5, 60 * windows + 8, dtype=np.uint8)
        starts = np.arange(windows, dtype=np.int64) * 60
        return engine.Batches(torch.from_numpy(codes), starts, 60, np.array([True]))

    def filled(windows: int) -> float:
        return 1.0

    assert StretchSizes(model, geometry, "cpu").choose("auto", filled) is None
    with pytest.raises(ModelError, match=f"--overlap share: .*{cause}"):
        StretchSizes(model, geometry, "cpu").choose("share", filled)
    subject = numerics.Subject(model, card, geometry, cpu)
    windows = numerics.GuardWindows(sample(engine.compute_batch(68, "cpu", 60)), None)
    with pytest.warns(UserWarning, match=f"computed as written: .*{cause}") as told:
        chosen = numerics.decide(subject, numerics.Candidates(kernels="auto", windows=1), windows)
    assert (chosen.kernels, chosen.overlap) == (("reference",), "naive")
    assert len(told) == 1
    block = sample(chosen.compute_batch)
    found = engine.Engine(model, card, geometry, chosen, cpu).submit(block)()
    with torch.no_grad():
        expected = model(block.codes.unfold(0, 68, 60)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(PrecisionError, match=f"--kernels cpu: .*{cause}; use --kernels auto"):
        numerics.decide(subject, numerics.Candidates(kernels="cpu", windows=1), windows)


def test_tracks_before_bins_are_turned(tmp_path: Path) -> None:
    profile = "x.unflatten(2, (5, 4)).mean(3)[:, :2]"
    fields = {"bins": 5, "bin_size": 4}
    model = returning(tmp_path, profile, output="tracks_bins", **fields)
    wanted = OneHot()(codes()).unflatten(2, (5, 4)).mean(3)[:, :2].transpose(1, 2)
    assert torch.equal(model(codes()), wanted)
    with pytest.raises(ModelError, match=r"returns \[3, 2, 5\].*, so return \[3, 5"):
        returning(tmp_path, profile, **fields)(codes())
    save_checkpoint(
        tmp_path / "m", model, make_card(output="tracks_bins", **fields), codes().numpy()
    )
    again = load_model(tmp_path / "m", trust_code=str(tmp_path / "mine.py"))
    assert torch.equal(again(codes()), wanted)


NEIGHBOR = (
    "from torch import nn\n\ndef conv(tracks):\n    return nn.Conv1d(4, tracks, 3, padding=1)\n"
)
IN_A_FOLDER = """
from torch import nn
from house_net.parts import conv

class Mean(nn.Module):
    def __init__(self, tracks=2):
        super().__init__()
        self.conv = conv(tracks)

    def forward(self, x):
        return self.conv(x).mean(2)
"""


def test_a_module_imports_its_neighbors_from_a_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = tmp_path / "src" / "house_net"
    package.mkdir(parents=True)
    (package / "parts.py").write_text(NEIGHBOR)
    write(package, IN_A_FOLDER, "model.py")
    with pytest.raises(ModelError, match="house_net"):  # a file alone sees no neighbors
        make_external(make_card(), str(package / "model.py"))
    asked = f"{tmp_path / 'src'}:house_net.model:Mean"
    model = make_external(make_card(), asked)
    assert model(codes()).shape == (3, 1, 2)
    (package / "parts.py").write_text(NEIGHBOR + "# changed\n")
    assert make_external(make_card(), asked).code.sha256 != model.code.sha256
    for wrong, message in (
        (f"{tmp_path / 'src'}:house_net.model", "write FOLDER:MODULE:CLASS"),
        (f"{tmp_path / 'src'}:json:JSONDecoder", "not a module of that folder"),
        (f"{tmp_path / 'src'}:house_net.none:Mean", "importing it"),
    ):
        with pytest.raises(ModelError, match=message):
            make_external(make_card(), wrong)
