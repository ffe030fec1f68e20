from __future__ import annotations

import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genomepred import PredictionStore, predict
from genomepred.errors import ModelError
from genomepred.models import convert, keras, keras_hdf5
from genomepred.models.card import Track, read_card
from genomepred.models.checkpoint import build, check_golden, load_model
from genomepred.models.convert import (
    GOLDEN_SEQUENCE,
    Request,
    golden_codes,
    import_weights,
    read_state,
    rename,
)
from tests.models.test_external import make_card, write

MINE = Request(
    name="mine", window=20, input="onehot_channels_first", tracks=[Track("a"), Track("b")]
)


def mine(folder: Path, **changes: Any) -> Request:
    return replace(MINE, trust_code=str(write(folder)), **changes)


def weights(prefix: str = "conv.") -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"{prefix}weight": torch.randn(2, 4, 3), f"{prefix}bias": torch.randn(2)}


def codes(window: int, n: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 5, (n, window), dtype=np.uint8))


# State dicts


def save_nested(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"epoch": 3, "model": {"state_dict": state}, "optimizer": {"lr": 0.1}}, path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("w.safetensors", lambda path, state: save_file(state, path)),
        ("w.pt", lambda path, state: torch.save(state, path)),
        (
            "w.pth",
            lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
        ),
        ("w.ckpt", save_nested),
        ("w", lambda path, state: torch.save({k: t.double() for k, t in state.items()}, path)),
    ],
)
def test_a_state_dict_becomes_a_checkpoint_that_proves_itself(
    tmp_path: Path, name: str, save: Callable[[Path, dict[str, Tensor]], None]
) -> None:
    save(tmp_path / name, weights())
    card = import_weights(tmp_path / name, tmp_path / "mine", mine(tmp_path))
    model = load_model(tmp_path / "mine", trust_code=str(tmp_path / "mine.py"))
    assert check_golden(model) == 0
    assert card == model.card == read_card(tmp_path / "mine")
    assert (card.architecture, card.stride, card.bin_size, card.min_bases) == (
        "external",
        20,
        20,
        1,
    )
    assert card.training["imported"]["file"] == name
    for key, tensor in weights().items():
        assert torch.equal(model.state_dict()[key], tensor)


def test_golden_inputs_are_windows_of_real_sequence(tmp_path: Path) -> None:
    found = golden_codes(GOLDEN_SEQUENCE, make_card())
    assert found.shape == (4, 20)
    assert len(np.unique(found, axis=0)) == 4
    assert ((found < 4).sum(1) >= 10).all()
    fasta = tmp_path / "short.fa"
    fasta.write_text(">a\nACGTACGTACGT\n>b\nNNNNNNNNNNNN\n>c\nAC\n")
    assert golden_codes(fasta, make_card()).tolist() == [[0, 1, 2, 3] * 3 + [4] * 8]
    fasta.write_text(">b\nNNNNNNNNNNNN\n")
    with pytest.raises(ModelError, match=r"no window of 20 bases is known by half.*--golden"):
        golden_codes(fasta, make_card())


def test_an_architecture_of_the_package_takes_weights_from_elsewhere(tmp_path: Path) -> None:
    source = build("tf-cnn", window=40, filters=4, hidden=[5])
    state = {f"net.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    (tmp_path / "map.json").write_text('{"net.": ""}')
    request = Request(
        name="cnn",
        architecture="tf-cnn",
        config={"filters": 4, "hidden": [5]},
        window=40,
        key_map=tmp_path / "map.json",
        activation="sigmoid",
    )
    card = import_weights(tmp_path / "w.pt", tmp_path / "cnn", request)
    assert (card.window, card.n_policy, card.tracks) == (40, "ones", (Track("score"),))
    model = load_model(tmp_path / "cnn")
    assert torch.equal(model(codes(40)), source.eval()(codes(40)))


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize(
    "save", [torch.save, lambda made, path: path.write_bytes(pickle.dumps(made, 2))]
)
def test_a_pickle_of_objects_is_refused_and_not_executed(
    tmp_path: Path, save: Callable[[Any, Path], object]
) -> None:
    save({"state_dict": _Bomb()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt: is (a pickle of objects|no whole torch file)"):
        import_weights(tmp_path / "w.pt", tmp_path / "mine", mine(tmp_path))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], "holds a list, not a state dict"),
        ({}, "holds no state dict.* but nothing"),
        ({"step": 1, "net": {"a": 2}}, r"neither at its top.*but step \(int\), net \(dict\)"),
        (weights("net."), r"needs conv.weight, conv.bias.* have net.weight, net.bias.*--key-map"),
        (weights() | {"more": torch.ones(1)}, "also needs nothing, the weights also have more"),
        (weights() | {"conv.bias": torch.ones(3)}, r"'conv.bias' has shape \[3\]; .* needs \[2\]"),
        (weights() | {"conv.bias": torch.full((2,), torch.nan)}, "holds NaN"),
    ],
)  # fmt: skip
def test_state_dicts_that_do_not_fit_are_refused(
    tmp_path: Path, document: Any, message: str
) -> None:
    torch.save(document, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message) as caught:
        import_weights(tmp_path / "w.pt", tmp_path / "mine", mine(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and more", b"\x80\x02", b"weights: 1\n"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.pt: is ") as caught:
        import_weights(tmp_path / "w.pt", tmp_path / "mine", mine(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trust_code": None}, "either --architecture NAME, or --trust-code"),
        ({"architecture": "linear"}, "either --architecture NAME, or --trust-code"),
        ({"window": None}, "needs --window"),
        ({"crop": 10}, "leaves 0 bases"),
        ({"bins": 3}, "leaves 20 bases, which are not 3 bins; correct --window"),
        ({"tracks": ()}, r"the model returns \[4, 2\] for 4 windows; the card says 1 bins and 1 "),
        ({"input": "codes"}, r"mine\.py: called with \[4, 20\]"),
    ],
)
def test_requests_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    torch.save(weights(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message):
        import_weights(tmp_path / "w.pt", tmp_path / "out", replace(mine(tmp_path), **changes))
    assert not (tmp_path / "out").exists()


# Key maps


def renamed(folder: Path, mapping: Any, *names: str) -> list[str]:
    (folder / "map.json").write_text(json.dumps(mapping))
    return list(rename(dict.fromkeys(names, torch.ones(1)), folder / "map.json"))


def test_key_maps_rename_names_and_prefixes_at_dots(tmp_path: Path) -> None:
    names = ("1.weight", "1.bias", "10.weight", "module.a.b", "count")
    mapping = {"1": "first", "1.bias": "offset", "10.weight": "w", "module.": "", "count": None}
    assert renamed(tmp_path, mapping, *names) == ["first.weight", "offset", "w", "a.b"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"2": "x"}, "nothing is called 2; the weights have 1.a, 1.b"),
        ({"1.a": "x", "1.b": "x"}, "two tensors would be called 'x'"),
        (["1"], "must be a JSON object"),
        ({"1": 2}, "must be a JSON object"),
    ],
)
def test_wrong_key_maps_are_refused(tmp_path: Path, mapping: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        renamed(tmp_path, mapping, "1.a", "1.b")


# Keras


def keras_file(
    path: Path, layers: dict[str, tuple[Any, Any]], *, version: int, **more: Any
) -> Path:
    """A file in the layout of Keras 1 or 2; ``more``: ``padding``, ``nested``, ``steps``."""
    ends = ("_W:0", "_b:0") if version == 1 else ("/kernel:0", "/bias:0")
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if more.get("nested") else file
        names = [*layers, "flatten"]
        group.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            pair = layers.get(name, ())
            weights = [f"{name}{end}".encode() for end in ends[: len(pair)]]
            layer = group.create_group(name)
            layer.attrs["weight_names"] = weights
            for weight, values in zip(weights, pair, strict=True):
                layer[weight.decode()] = values
        if "padding" in more:
            file.attrs["model_config"] = json.dumps(described(version, more))
    return path


def described(version: int, more: dict[str, Any]) -> dict[str, Any]:
    conv = {"activation": "relu", "border_mode" if version == 1 else "padding": more["padding"]}
    steps = more.get("steps") or [
        ("Convolution1D" if version == 1 else "Conv1D", conv),
        ("Conv1D", {**conv, "strides": [1], "dilation_rate": [1]}),
        ("Flatten", {}),
        ("Dense", {"activation": "linear"}),
        ("Dropout", {}),
        ("Activation", {"activation": "relu"}),
        ("Dense", {}),
    ]
    layers = [{"class_name": kind, "config": config} for kind, config in steps]
    return {"config": layers if version == 1 else {"name": "m", "layers": layers}}


def keras_layers(padding: str, version: int = 2) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """A model of two convolutions, and its weights as Keras stores them."""
    torch.manual_seed(3)
    model = build("optimus5p", window=30, convolutions=2, filters=6, padding=padding, hidden=7)
    layers = {}
    found = [m for m in model.modules() if isinstance(m, torch.nn.Conv1d | torch.nn.Linear)]
    for i, layer in enumerate(found):
        kernel = layer.weight.detach().numpy().T
        kernel = kernel[:, None] if kernel.ndim == 3 and version == 1 else kernel
        layers[f"layer_{9 - i}"] = (kernel, layer.bias.detach().numpy())  # names do not sort
    return model, layers


@pytest.mark.parametrize(
    ("version", "padding", "nested"),
    [
        *[(1, "same", True), (1, "valid", False), (2, "same", False), (2, "valid", True)],
        pytest.param(1, "same", False, marks=pytest.mark.slow),
        pytest.param(1, "valid", True, marks=pytest.mark.slow),
        pytest.param(2, "same", True, marks=pytest.mark.slow),
        pytest.param(2, "valid", False, marks=pytest.mark.slow),
    ],
)
def test_keras_weights_give_the_model_that_they_were_made_from(
    tmp_path: Path, version: int, padding: str, nested: bool
) -> None:
    model, layers = keras_layers(padding, version)
    path = keras_file(tmp_path / "k.h5", layers, version=version, nested=nested, padding=padding)
    card = import_weights(path, tmp_path / "k", Request(name="k"))
    assert card.config == {
        "window": 30, "tracks": 1, "convolutions": 2, "filters": 6, "kernel": 8, "hidden": 7,
        "padding": padding,
    }  # fmt: skip
    assert torch.equal(load_model(tmp_path / "k")(codes(30)), model.eval()(codes(30)))


def test_weights_alone_need_the_padding_or_the_window(tmp_path: Path) -> None:
    model, layers = keras_layers("valid")
    path = keras_file(tmp_path / "k.h5", layers, version=2)
    both = r"padding=same \(window 16\) and --set padding=valid \(window 30\)"
    with pytest.raises(ModelError, match=f"does not say how .*{both}"):
        import_weights(path, tmp_path / "k", Request(name="k"))
    for i, request in enumerate(
        (Request(name="k", window=30), Request(name="k", config={"padding": "valid"}))
    ):
        import_weights(path, tmp_path / f"k{i}", request)
        assert torch.equal(load_model(tmp_path / f"k{i}")(codes(30)), model.eval()(codes(30)))


def change(layers: dict[str, Any], name: str, kernel: Any = None, bias: Any = None) -> None:
    old = layers[name]
    layers[name] = (old[0] if kernel is None else kernel, old[1] if bias is None else bias)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda layers: layers.pop("layer_6"), "then two dense layers"),
        (lambda layers: change(layers, "layer_9", np.ones((8, 5, 6))), "from 4 channels"),
        (lambda layers: change(layers, "layer_8", np.ones((7, 6, 6))), "of one width"),
        (lambda layers: change(layers, "layer_9", bias=np.ones(5)), "'layer_9' has a kernel"),
        (lambda layers: change(layers, "layer_9", np.ones((8, 2, 4, 6))), "'layer_9' has a kernel"),
        (lambda layers: layers.update(layer_9=layers["layer_9"][:1]), "has kernel alone"),
        (lambda layers: layers.clear(), r"kernels \[\]"),
    ],
)
def test_keras_weights_of_another_network_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    _, layers = keras_layers("same")
    spoil(layers)
    path = keras_file(tmp_path / "k.h5", layers, version=2, padding="same")
    with pytest.raises(ModelError, match=message):
        import_weights(path, tmp_path / "k", Request(name="k"))


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([("Conv1D", {"activation": "elu"})], "convolution, elu"),
        ([("Conv1D", {"strides": [2]})], "convolution of stride"),
        ([("MaxPooling1D", {})], "MaxPooling1D"),
    ],
)
def test_keras_layers_that_compute_something_else_are_refused(
    tmp_path: Path, steps: Any, found: str
) -> None:
    _, layers = keras_layers("same")
    path = keras_file(tmp_path / "k.h5", layers, version=2, padding="same", steps=steps)
    with pytest.raises(ModelError, match=f"its layers are {found}"):
        import_weights(path, tmp_path / "k", Request(name="k"))


def keras_3_file(path: Path, layers: dict[str, Any]) -> Path:
    """As Keras 3 writes weights: numbered by class, in groups that sort otherwise."""
    kinds: Counter[str] = Counter()
    with h5py.File(path, "w") as file:
        for kernel, bias in layers.values():
            kind = "conv1d" if kernel.ndim == 3 else "dense"
            name = f"{kind}_{kinds[kind]}" if kinds[kind] else kind
            kinds[kind] += 1
            file[f"layers/{name}/vars/0"], file[f"layers/{name}/vars/1"] = kernel, bias
        for name in ("flatten", "dropout"):
            file.create_group(f"layers/{name}/vars")
        file.create_group("vars")
    return path


@pytest.mark.parametrize("whole", [True, False])
def test_files_of_keras_3_are_read(tmp_path: Path, whole: bool) -> None:
    torch.manual_seed(3)
    model = build("optimus5p", window=30, convolutions=12, filters=6, hidden=7)
    found = [m for m in model.modules() if isinstance(m, torch.nn.Conv1d | torch.nn.Linear)]
    pairs = [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in found]
    path = keras_3_file(tmp_path / "k.weights.h5", {str(i): p for i, p in enumerate(pairs)})
    request = Request(name="k", window=30)
    if whole:
        conv = ("Conv1D", {"activation": "relu", "padding": "same", "strides": [1]})
        ends = [("Flatten", {}), ("Dense", {"activation": "relu"}), ("Dense", {})]
        config = json.dumps(described(2, {"padding": "same", "steps": [conv] * 12 + ends}))
        with zipfile.ZipFile(tmp_path / "k.keras", "w") as archive:
            archive.writestr("config.json", config)
            archive.write(path, "model.weights.h5")
        path, request = tmp_path / "k.keras", Request(name="k")
    import_weights(path, tmp_path / "k", request)
    assert torch.equal(load_model(tmp_path / "k")(codes(30)), model.eval()(codes(30)))


def test_layers_of_keras_3_that_are_not_read_are_named_with_the_way_out(tmp_path: Path) -> None:
    path = keras_3_file(tmp_path / "k.weights.h5", keras_layers("same")[1])
    with h5py.File(path, "a") as file:
        file.create_group("layers/max_pooling1d/vars")
    with pytest.raises(ModelError, match=r"max_pooling1d.*model\.save"):
        import_weights(path, tmp_path / "k", Request(name="k", window=30))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("os.kill(os.getpid(), 11)", "signal 11"),
        ("x = bytearray(1 << 40)", "exit 1"),
        ("while True: pass", "signal"),
        ("sys.stdout.write('x' * 100)", "ends with exit 0"),
        ("sys.stdout.buffer.write(bytes(8))", "not JSON"),
    ],
)
def test_whatever_hdf5_does_to_its_reader_is_a_line(
    tmp_path: Path, program: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(keras_hdf5.__file__).read_text()
    reader = tmp_path / "reader.py"
    reader.write_text(
        source.replace(
            "    try:\n        told, arrays = read(",
            f"    {program}\n    return\n    try:\n        told, arrays = read(",
        )
    )
    monkeypatch.setattr(keras_hdf5, "__file__", str(reader))
    monkeypatch.setattr(keras, "_MOST_SECONDS", 1)
    path = keras_file(tmp_path / "k.h5", keras_layers("same")[1], version=2, padding="same")
    with pytest.raises(ModelError, match=f"k.h5: is no whole Keras .*{message}"):
        import_weights(path, tmp_path / "k", Request(name="k"))


def test_reading_hdf5_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "h5py", "numpy", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = keras_file(tmp_path / "k.h5", keras_layers("same")[1], version=2, padding="same")
    import_weights(path, tmp_path / "k", Request(name="k"))
    assert not (tmp_path / "ran").exists()


def test_a_byte_that_ended_the_process_is_refused(tmp_path: Path, shared_data: Path) -> None:
    content = (shared_data / "weights/optimus5p/evolution_model.hdf5").read_bytes()
    damaged = bytearray(content)
    damaged[937] = 201
    (tmp_path / "k.hdf5").write_bytes(damaged)
    with pytest.raises(ModelError, match="no whole Keras"):
        import_weights(tmp_path / "k.hdf5", tmp_path / "k", Request(name="k"))


def test_an_import_never_replaces_a_checkpoint(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "w.pt")
    card = import_weights(tmp_path / "w.pt", tmp_path / "mine", mine(tmp_path))
    with pytest.raises(ModelError, match="holds a checkpoint already"):
        import_weights(tmp_path / "w.pt", tmp_path / "mine", mine(tmp_path))
    assert read_card(tmp_path / "mine") == card


def test_a_damaged_torch_file_is_refused_or_gives_the_same_tensors(tmp_path: Path) -> None:
    path, generator = tmp_path / "w.pt", np.random.default_rng(0)
    torch.save(weights(), path)
    content, refused = path.read_bytes(), 0
    for at in generator.permutation(len(content))[:400].tolist():
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(generator.integers(8))
        try:
            state = read_state(path, bytes(damaged))
        except ModelError as error:
            refused += "\n" not in str(error)
            continue
        assert state.keys() == weights().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in weights().items())
    assert refused > 100


def test_counters_of_batches_may_be_absent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build("tf-cnn-v2", window=21, filters=4, hidden=[5])
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) == len(model.state_dict()) - 2
    torch.save(state, tmp_path / "w.pt")
    config = {"window": 21, "filters": 4, "hidden": [5]}
    request = Request(name="m", architecture="tf-cnn-v2", config=config)
    import_weights(tmp_path / "w.pt", tmp_path / "m", request)
    assert torch.equal(load_model(tmp_path / "m")(codes(21)), model.eval()(codes(21)))


@pytest.mark.parametrize("kind", ["sparse", "meta", "complex", "named 1", "itself"])
def test_tensors_of_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    tensor = weights()["conv.weight"]
    state: dict[Any, Any] = {
        "sparse": {"a": tensor.to_sparse()},
        "meta": {"a": tensor.to("meta")},
        "complex": {"a": tensor.to(torch.complex64)},
        "named 1": {1: tensor},
        "itself": {},
    }[kind]
    if kind == "itself":
        state["model"] = state
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt"):
        import_weights(tmp_path / "w.pt", tmp_path / "mine", mine(tmp_path))


def test_an_architecture_too_large_for_its_weights_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "build", lambda *_, **__: pytest.fail("memory was taken"))
    torch.save(weights(), tmp_path / "w.pt")
    config = {"window": 1 << 20, "filters": 1 << 18}
    with pytest.raises(ModelError, match="its names do not fit"):
        import_weights(
            tmp_path / "w.pt", tmp_path / "m", Request("m", architecture="tf-cnn", config=config)
        )


def test_other_hdf5_and_other_targets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.h5"
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    with pytest.raises(ModelError, match="no 'layer_names'"):
        import_weights(path, tmp_path / "k", Request(name="k"))
    with pytest.raises(ModelError, match="into optimus5p alone"):
        import_weights(path, tmp_path / "k", Request(name="k", architecture="linear"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="no whole Keras HDF5 file"):
        import_weights(path, tmp_path / "k", Request(name="k"))
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"norm"]
        file.create_group("norm").attrs["weight_names"] = [b"norm/gamma:0"]
        file["norm/norm/gamma:0"] = [1.0]
    with pytest.raises(ModelError, match="layer 'norm' has a weight 'gamma'"):
        import_weights(path, tmp_path / "k", Request(name="k"))


# Published weights


def test_optimus_5_prime_reproduces_its_published_correlations(
    tmp_path: Path, shared_data: Path
) -> None:
    folder = shared_data / "weights" / "optimus5p"
    card = import_weights(
        folder / "evolution_model.hdf5", tmp_path / "m", Request(name="evolution")
    )
    assert (card.window, card.config["convolutions"], card.config["filters"]) == (54, 2, 40)
    table = pd.read_csv(folder / "snv_phenotype_log_diff.csv.gz")
    records = (f">{i}\n{utr}ATGG\n" for i, utr in enumerate(table.utr))
    (tmp_path / "utrs.fa").write_text("".join(records))
    predict(tmp_path / "utrs.fa", tmp_path / "m", tmp_path / "out", jobs=1)
    with PredictionStore(tmp_path / "out" / "utrs.h5") as store:
        values = store.predictions[:, 0]
    assert len(values) == 3_002
    assert round(np.corrcoef(values, table.hrl)[0, 1], 4) == 0.8157
    assert round(np.corrcoef(values, table.old_pred)[0, 1], 4) == 0.9701


KIPOI = """
from torch import nn

def example():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(4000, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid()
    )
"""


def test_the_kipoi_example_reproduces_its_expected_predictions(
    tmp_path: Path, shared_data: Path
) -> None:
    """All 14 inputs are N. The last bits depend on the order of sums, that is, on the batch."""
    folder = shared_data / "weights" / "foreign_formats"
    code = f"{write(tmp_path, KIPOI)}:example"
    request = Request(
        name="kipoi", trust_code=code, window=1000, input="onehot_channels_last",
        n_policy="uniform", min_bases=0,
    )  # fmt: skip
    import_weights(folder / "only_weights.pth", tmp_path / "m", request)
    with h5py.File(folder / "expected.pred.h5") as file:
        expected, names = file["preds"][:, 0], file["metadata/ranges/id"][:]
        assert np.unique(file["inputs"][:]).tolist() == [0.25]
    (tmp_path / "n.fa").write_text("".join(f">{n.decode()}\n{'N' * 1000}\n" for n in names))
    predict(tmp_path / "n.fa", tmp_path / "m", tmp_path / "out", jobs=1, trust_code=code)
    with PredictionStore(tmp_path / "out" / "n.h5") as store:
        values = store.predictions[:, 0]
    np.testing.assert_array_max_ulp(values, expected, 4)
    # Real sequence says what N cannot: the order of channels and positions.
    model = load_model(tmp_path / "m", trust_code=code)
    sequence = golden_codes(GOLDEN_SEQUENCE, model.card)
    state = {name: t.double().numpy() for name, t in model.state_dict().items()}
    x = np.eye(5)[sequence][..., :4].reshape(len(sequence), 4000)
    hidden = np.maximum(x @ state["1.weight"].T + state["1.bias"], 0)
    logits = hidden @ state["3.weight"].T + state["3.bias"]
    found = model(torch.from_numpy(sequence)).detach().numpy()[:, 0]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_a_full_pickle_is_refused_with_the_reason(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "weights" / "foreign_formats" / "full_model.pth"
    message = r"pickle of objects \(torch\.nn\.modules\.container\.Sequential\).*execute code"
    with pytest.raises(ModelError, match=message):
        import_weights(path, tmp_path / "m", mine(tmp_path))
