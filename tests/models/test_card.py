from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genomepred.errors import ModelError
from genomepred.models.card import Card, Track, difference, find_checkpoint, read_card

CONFIG: dict[str, Any] = {"window": 21, "filters": 4, "kernel": 4, "hidden": [5]}


def make_card(**changes: Any) -> Card:
    fields: dict[str, Any] = {
        "name": "toy",
        "architecture": "tf-cnn",
        "config": CONFIG,
        "window": 21,
        "bin_size": 21,
        "stride": 7,
        "tracks": (Track("CTCF", "binding", "logit"),),
        "activation": "sigmoid",
        "n_policy": "ones",
        "min_bases": 10,
        "training": {"seed": 3, "nested": {"a": [1, 2]}},
        "metrics": {"auROC": 0.5},
        "license": "MIT",
    }
    return Card(**{**fields, **changes})


def test_card_survives_json() -> None:
    card = make_card(reverse_tracks=(0,), crop=3, bin_size=15)
    assert Card.from_json(card.to_json()) == card


def test_every_field_is_in_the_json_and_must_be() -> None:
    document = json.loads(make_card().to_json())
    assert next(iter(document)) == "format_version"
    for name in Card.__dataclass_fields__.keys() - {"output"}:
        lacking = {key: value for key, value in document.items() if key != name}
        with pytest.raises(ModelError, match=f"x/card.json: field '{name}' is missing"):
            Card.from_json(json.dumps(lacking), "x/card.json")
    del document["output"]
    assert Card.from_json(json.dumps(document)).output == "bins_tracks"


BAD_FIELDS = [
    ("format_version", 2),
    ("format_version", "1"),
    ("name", ""),
    ("name", "a/../b"),
    ("name", None),
    ("architecture", "resnet"),
    ("architecture", ["tf-cnn"]),
    ("config", []),
    ("window", 0),
    ("window", "21"),
    ("window", True),
    ("window", 21.0),
    ("crop", -1),
    ("bins", 0),
    ("bin_size", None),
    ("bin_size", 20),  # contradicts the window
    ("stride", 0),
    ("tracks", []),
    ("tracks", ["CTCF"]),
    ("tracks", [{"name": ""}]),
    ("tracks", [{"name": "a"}, {"name": "a"}]),
    ("tracks", [{"name": "a", "color": "red"}]),
    ("tracks", [{"description": "no name"}]),
    ("reverse_tracks", [1]),
    ("reverse_tracks", [0, 0]),
    ("reverse_tracks", ["0"]),
    ("reverse_tracks", 0),
    ("activation", "relu"),
    ("activation", None),
    ("input", "onehot"),
    ("output", "tracks"),
    ("base_order", "ACG"),
    ("base_order", "ACGU"),
    ("base_order", 4),
    ("n_policy", "half"),
    ("min_bases", -1),
    ("min_bases", 22),  # more than the window
    ("tolerance", {}),
    ("tolerance", {"fp32": 1e-5, "fp16": 2e-3, "bf16": 0.0}),
    ("tolerance", {"fp32": 1e-5, "fp16": 2e-3, "bf16": "loose"}),
    ("training", None),
    ("metrics", ["auROC"]),
    ("license", None),
    ("weights_sha256", "abc"),
    ("weights_sha256", "G" * 64),
    ("package_version", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_wrong_field_is_refused_with_its_file_name_value_and_what_is_allowed(
    name: str, value: Any
) -> None:
    document = {**json.loads(make_card().to_json()), name: value}
    with pytest.raises(ModelError) as caught:
        Card.from_json(json.dumps(document), "dir/card.json")
    message = str(caught.value)
    assert message.startswith("dir/card.json: ")
    assert "\n" not in message
    if (name, value) != ("bin_size", 20):  # reported with all the sizes it contradicts
        assert f"field '{name}' is " in message
        assert "allowed: " in message


DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize("name", [*Card.__dataclass_fields__])
@pytest.mark.parametrize(
    "value",
    [10**4000, -(10**30), {}, [[]], [{}], {"a": {"b": DEEP}}, "\ud800", "a\x00b", 1e300, DEEP],
)
def test_any_field_of_any_kind_is_a_card_or_a_line(name: str, value: Any) -> None:
    document = {**json.loads(make_card().to_json()), name: value}
    message = ""
    try:
        card = Card.from_json(json.dumps(document), "card.json")
    except ModelError as error:
        message = str(error)
    if message:
        assert message.startswith("card.json: ")
        assert len(message.encode()) < 1000
    else:
        assert Card.from_json(card.to_json()) == card


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", "9" * 5000])
def test_numbers_that_json_has_not_are_refused(number: str) -> None:
    text = make_card().to_json().replace('"auROC": 0.5', f'"auROC": {number}')
    with pytest.raises(ModelError, match="card"):
        Card.from_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"name": 1, "name": 2}'])
def test_nested_and_repeated_json_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="is no card"):
        Card.from_json(text)


def test_tracks_are_short_printable_text() -> None:
    for name in ("a\tb", "a\nb", "x" * 201, "\x1b[2J"):
        with pytest.raises(ModelError, match="'tracks'"):
            make_card(tracks=(Track(name),))
    assert make_card(tracks=(Track("H3K4me3, Blüte"),)).tracks[0].name == "H3K4me3, Blüte"


def test_a_card_that_is_no_small_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "card.json")
    with pytest.raises(ModelError, match="pipe"):
        read_card(tmp_path / "pipe")
    write_card(tmp_path / "large")
    with open(tmp_path / "large" / "card.json", "ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(ModelError, match="larger than"):
        read_card(tmp_path / "large")
    with pytest.raises(ModelError, match="no model"):
        read_card("x" * 5000)


def test_all_fields_have_a_bad_example() -> None:
    assert {name for name, _ in BAD_FIELDS} == set(Card.__dataclass_fields__)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"card"'])
def test_what_is_no_json_object_is_no_card(text: str) -> None:
    with pytest.raises(ModelError, match=r"card\.json"):
        Card.from_json(text)


def test_an_unknown_field_is_refused() -> None:
    document = {**json.loads(make_card().to_json()), "widnow": 3}
    with pytest.raises(ModelError, match="'widnow' is unknown"):
        Card.from_json(json.dumps(document))


def test_geometry_of_a_card_takes_another_stride() -> None:
    assert make_card().geometry().stride == 7
    assert make_card().geometry(3).stride == 3


def test_track_order_must_be_a_permutation_of_all_tracks() -> None:
    two = (Track("a"), Track("b"))
    assert replace(make_card(), tracks=two, reverse_tracks=(1, 0)).reverse_tracks == (1, 0)
    with pytest.raises(ModelError, match="reverse_tracks"):
        make_card(tracks=two, reverse_tracks=(0,))


# Finding


def test_an_unknown_name_lists_the_bundled_models() -> None:
    with pytest.raises(ModelError, match=r"no model 'no-such'.*bundled are: .*ctcf"):
        read_card("no-such")


def write_card(folder: Path) -> None:
    folder.mkdir()
    (folder / "card.json").write_text(make_card().to_json())


def test_a_folder_without_card_points_to_the_checkpoint_inside(tmp_path: Path) -> None:
    write_card(tmp_path / "toy")
    with pytest.raises(ModelError, match=f"did you mean {tmp_path / 'toy'}"):
        read_card(tmp_path)


def test_a_bundled_name_wins_over_a_folder_unless_written_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(tmp_path / "ctcf")
    monkeypatch.chdir(tmp_path)
    assert read_card("ctcf").name == "ctcf"
    assert read_card("./ctcf").name == "toy"
    assert find_checkpoint(Path("ctcf")) == Path("ctcf")


def test_reading_cards_needs_no_torch() -> None:
    code = (
        "import sys; from genomepred.models.card import read_card; read_card('ctcf'); "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_difference_is_relative_to_one_and_the_expected_value() -> None:
    assert difference(np.array([1.5, -2.0]), np.array([1.0, -3.0])) == 0.25
    assert difference(torch.tensor([[1.5]]), torch.tensor([[1.0]], dtype=torch.float64)) == 0.25
    assert difference(torch.empty(0), torch.empty(0)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_differs_infinitely(value: float) -> None:
    finite, other = np.zeros(3, np.float32), np.array([0, value, 0], np.float32)
    assert difference(other, finite) == difference(finite, other) == np.inf
    assert difference(other, other) == np.inf


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2\] are compared with \[2, 1\]"):
        difference(torch.zeros(2), torch.zeros(2, 1))
