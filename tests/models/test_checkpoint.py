from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genomepred import files
from genomepred.errors import DeviceError, ModelError
from genomepred.models import checkpoint as checkpoint_module
from genomepred.models.card import read_card
from genomepred.models.checkpoint import build, check_golden, load_model, save_checkpoint, skeleton
from genomepred.models.layers import SequenceModel
from tests.models.test_card import CONFIG, make_card


def golden_codes(n: int = 3, window: int = 21) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 5, (n, window), dtype=np.uint8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "toy", build("tf-cnn", **CONFIG), make_card(), golden_codes())
    return tmp_path / "toy"


def rewrite_card(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors and make the card agree with the new file."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    accept_weights(checkpoint)


def accept_weights(checkpoint: Path) -> None:
    content = (checkpoint / "model.safetensors").read_bytes()
    rewrite_card(checkpoint, weights_sha256=hashlib.sha256(content).hexdigest())


def test_a_checkpoint_gives_back_the_model_and_proves_it(checkpoint: Path) -> None:
    torch.manual_seed(1)
    original = build("tf-cnn", **CONFIG).eval()
    model = load_model(checkpoint)
    codes = torch.from_numpy(golden_codes(5))
    assert torch.equal(model(codes), original(codes))
    assert not model.training
    assert model.card == make_card(weights_sha256=model.card.weights_sha256)
    assert check_golden(model) == 0
    assert check_golden(checkpoint) == 0
    assert {path.name for path in checkpoint.iterdir()} == {
        "card.json",
        "golden.safetensors",
        "model.safetensors",
        "README.md",
    }
    assert list(checkpoint.parent.iterdir()) == [checkpoint], "no temporary files are left"


def test_half_precision_weights_load_as_float32_and_match_their_own_golden(tmp_path: Path) -> None:
    model = build("tf-cnn", **CONFIG)
    save_checkpoint(
        tmp_path / "half", model, make_card(), golden_codes(), weights_dtype=torch.float16
    )
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = load_model(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert check_golden(loaded) == 0
    assert next(model.parameters()).dtype == torch.float32, "the given model stays as it is"


def test_saving_again_replaces_a_checkpoint(checkpoint: Path) -> None:
    before = read_card(checkpoint).weights_sha256
    save_checkpoint(checkpoint, build("tf-cnn", **CONFIG), make_card(), golden_codes())
    assert read_card(checkpoint).weights_sha256 != before
    check_golden(checkpoint)


def test_saving_never_removes_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ModelError, match="holds other files"):
        save_checkpoint(tmp_path, build("tf-cnn", **CONFIG), make_card(), golden_codes())
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_saving_refuses_a_card_that_does_not_describe_the_model(tmp_path: Path) -> None:
    card = make_card(n_policy="zeros")
    with pytest.raises(ModelError, match="'n_policy' is 'zeros', but the architecture"):
        save_checkpoint(tmp_path / "x", build("tf-cnn", **CONFIG), card, golden_codes())
    assert not (tmp_path / "x").exists()


def test_saving_refuses_golden_inputs_of_another_window(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="golden codes"):
        save_checkpoint(
            tmp_path / "x", build("tf-cnn", **CONFIG), make_card(), golden_codes(window=20)
        )


def test_the_readme_shows_the_card(checkpoint: Path) -> None:
    text = (checkpoint / "README.md").read_text()
    for part in ("# toy", "tf-cnn", "CTCF", "auROC", "MIT", "nested, a"):
        assert part in text
    assert "--model THIS_FOLDER" in text  # a name is only known of bundled models


@pytest.mark.parametrize(
    ("license", "lines"),
    [
        ("GPL-3.0", ["license: gpl-3.0"]),
        ("Apache-2.0; of labels under MIT", ["license: apache-2.0"]),
        ("", ["license: unknown"]),
        ('ask us: "free"', ["license: other", 'license_name: "ask us: \\"free\\""']),
    ],
)
def test_the_readme_begins_with_what_a_model_hub_reads(
    tmp_path: Path, license: str, lines: list[str]
) -> None:
    card = make_card(license=license)
    save_checkpoint(tmp_path / "toy", build("tf-cnn", **CONFIG), card, golden_codes())
    _, front, text = (tmp_path / "toy" / "README.md").read_text().split("---\n", 2)
    found = front.splitlines()
    assert found[: len(lines)] == lines
    assert found[len(lines) :] == [
        "library_name: genomepred",
        "pipeline_tag: other",
        "tags:",
        *('- "genomics"', '- "dna"', '- "genomepred"', '- "tf-cnn"'),
    ]
    assert text.startswith("\n# toy\n")


# Tampering


def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without an exchange of folders, after every rename."""
    before = read_card(checkpoint).weights_sha256

    class KilledError(BaseException):
        pass

    for exchanges in (True, False):
        for survived in range(3):
            renames = 0

            def rename(old: Any, new: Any, real: Any = os.rename, last: int = survived) -> None:
                nonlocal renames
                if Path(old).name in ("new", "toy", "old"):
                    renames += 1
                    if renames > last:
                        raise KilledError
                real(old, new)

            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", rename)
                patch.setattr(files, "_put_back", lambda *_: None)  # nothing runs after a kill
                if not exchanges:
                    patch.setattr(files, "_exchange", lambda *_: False)
                with contextlib.suppress(KilledError):
                    save_checkpoint(
                        checkpoint, build("tf-cnn", **CONFIG), make_card(), golden_codes()
                    )
            with monkeypatch.context() as patch:
                patch.setattr(files, "_is_alive", lambda _: False)
                check_golden(checkpoint)
                files.recover_folder(checkpoint)
            assert list(checkpoint.parent.iterdir()) == [checkpoint], "what is left is removed"
    assert read_card(checkpoint).weights_sha256 != before


def test_a_failure_while_a_checkpoint_is_replaced_keeps_the_old_one(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = read_card(checkpoint).weights_sha256, os.rename

    def rename(old: Any, new: Any) -> None:
        if Path(old).name == "new":
            raise OSError(errno.EIO, "Input/output error")
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    with pytest.raises(ModelError, match="toy: cannot be written: Input/output error"):
        save_checkpoint(checkpoint, build("tf-cnn", **CONFIG), make_card(), golden_codes())
    assert read_card(checkpoint).weights_sha256 == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_folders_are_exchanged_here_or_the_system_says_that_it_cannot(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    told = {True: "b", False: "a"}[files._exchange(tmp_path / "a", tmp_path / "b")]
    assert (tmp_path / "a" / "file").read_text() == told
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize(
    "config",
    [
        {"filters": 1 << 19},
        {"hidden": [1 << 19, 1 << 19]},
        {"hidden": [1] * 5000},
        {"blocks": 1 << 19},
        {"window": 1 << 40},
        {"kernel": 10**30},
        {"kernel": "wide"},
        {"hidden": {"a": 1}},
        {"hidden": None},
        {"base_order": 5},
        {"n_policy": []},
    ],
)
def test_a_config_of_another_size_is_refused_before_memory_is_taken(
    checkpoint: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def noted(name: str, **config: Any) -> SequenceModel:
        built.append(torch.get_default_device().type)
        return build(name, **config)

    monkeypatch.setattr(checkpoint_module, "build", noted)
    rewrite_card(checkpoint, config={**CONFIG, **config})
    with pytest.raises(ModelError, match="toy"):
        load_model(checkpoint)
    assert set(built) <= {"meta"}


def test_constants_beside_the_weights_are_bounded() -> None:
    with pytest.raises(ModelError, match="constants beside its weights"):
        skeleton("nucleic-transformer", window=1 << 23, dim=64)


def test_weights_with_an_endless_header_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    for content in (
        (1 << 62).to_bytes(8, "little") + b"{}",
        (1 << 25).to_bytes(8, "little") + b" " * (1 << 25),
        (100_002).to_bytes(8, "little") + b'{"a":' + b"[" * 99_997,
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="no whole safetensors"):
            load_model(checkpoint)


def test_a_flipped_byte_in_the_weights_is_found(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: sha256 is .* card says"):
        load_model(checkpoint)


def test_truncated_weights_are_found(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="no whole safetensors"):
        load_model(checkpoint)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was executed",)


def test_a_pickle_is_refused_and_not_executed(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(pickle.dumps(_Bomb()))
    accept_weights(checkpoint)
    with pytest.raises(ModelError, match="never unpickled"):
        load_model(checkpoint)


def test_a_torch_file_is_refused(checkpoint: Path) -> None:
    torch.save(build("tf-cnn", **CONFIG).state_dict(), checkpoint / "model.safetensors")
    accept_weights(checkpoint)
    with pytest.raises(ModelError, match="no whole safetensors"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(extra=torch.ones(1)), "'extra' is not part of"),
        (lambda t: t.pop("head.1.bias"), r"'head\.1\.bias' is missing"),
        (
            lambda t: t.update({"head.1.bias": torch.ones(6)}),
            r"'head\.1\.bias' has shape \[6\].*needs \[5\]",
        ),
        (
            lambda t: t["head.1.bias"].fill_(math.nan),
            r"'head\.1\.bias' holds NaN",
        ),
        (
            lambda t: t.update({"head.1.bias": torch.ones(5, dtype=torch.int32)}),
            r"'head\.1\.bias' is torch\.int32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    rewrite_weights(checkpoint, change)
    with pytest.raises(ModelError, match=message):
        load_model(checkpoint)


def test_golden_outputs_catch_weights_that_were_swapped_with_their_sha256(
    checkpoint: Path,
) -> None:
    rewrite_weights(checkpoint, lambda t: t["head.3.bias"].add_(0.01))
    with pytest.raises(ModelError, match=r"differ from the golden ones by 0\.0"):
        check_golden(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        {"codes": torch.zeros(1, 21, dtype=torch.uint8)},
        {"codes": torch.zeros(1, 20, dtype=torch.uint8), "outputs": torch.zeros(1, 1, 1)},
        {"codes": torch.zeros(2, 21, dtype=torch.uint8), "outputs": torch.zeros(1, 1, 1)},
        {"codes": torch.zeros(1, 21, dtype=torch.uint8), "outputs": torch.full((1, 1, 1), 9.0)},
        {"codes": torch.zeros(0, 21, dtype=torch.uint8), "outputs": torch.zeros(0, 1, 1)},
    ],
)
def test_a_golden_file_that_proves_nothing_is_refused(
    checkpoint: Path, content: dict[str, torch.Tensor]
) -> None:
    save_file(content, checkpoint / "golden.safetensors")
    with pytest.raises(ModelError, match=r"toy"):
        check_golden(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "card.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_model(checkpoint)


def test_a_missing_golden_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "golden.safetensors").unlink()
    with pytest.raises(ModelError, match=r"golden\.safetensors"):
        check_golden(checkpoint)


def test_config_that_contradicts_the_card_is_refused(checkpoint: Path) -> None:
    rewrite_card(checkpoint, config={**CONFIG, "window": 22})
    with pytest.raises(ModelError, match=r"card\.json: field 'window' is 21.*has 22"):
        load_model(checkpoint)


@pytest.mark.parametrize("config", [{"widnow": 3}, {"window": "x"}, {"window": -4}])
def test_config_the_architecture_does_not_accept_is_refused(
    checkpoint: Path, config: dict[str, Any]
) -> None:
    rewrite_card(checkpoint, config=config)
    with pytest.raises(ModelError, match=r"card\.json: field 'config'"):
        load_model(checkpoint)


def test_a_device_that_does_not_exist_is_refused(checkpoint: Path) -> None:
    with pytest.raises(DeviceError, match="'nonsense'"):
        load_model(checkpoint, "nonsense")


def test_build_is_a_name_of_the_package_of_models():
    models = importlib.import_module("genomepred.models")
    assert models.build is build
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = models.absent
