from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.documents import COUNT, SEAL, DocumentError, read_document, seal
from tests.helpers import examples

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(document=st.dictionaries(st.text(), VALUES, max_size=5))
@settings(max_examples=examples(100), deadline=None)
def test_a_sealed_document_reads_back_equal(document, tmp_path_factory):
    document.pop(SEAL, None)
    path = tmp_path_factory.mktemp("sealed") / "record.json"
    path.write_bytes(seal(document))
    assert read_document(path, {}, sealed=True) == document


def test_names_that_are_no_unicode_survive(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(seal({"path": "g\udce9nome.fa"}))
    assert read_document(path, {"path": str}, sealed=True) == {"path": "g\udce9nome.fa"}


def test_every_changed_bit_of_a_sealed_document_is_noticed(tmp_path):
    document = {"contigs": {"chr1": 48502, "é": 0}, "digest": "a0", "rate": 0.1, "done": True}
    data, path = seal(document), tmp_path / "record.json"
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read_document(path, {}, sealed=True)
        except DocumentError:
            continue
        assert found == document  # a changed blank between tokens changes nothing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("", "not JSON"),
        ('{"size": 1', "not JSON"),
        ('{"size": ' + "9" * 5000 + "}", "not JSON"),
        ('{"size": NaN}', "NaN is no JSON number"),
        ('{"size": 1, "size": 2}', "names a key twice"),
        ("[1]", "the document is .1., not an object"),
        ("{}", "size is absent"),
        ('{"size": true}', "size is True, not an integer from 0 to"),
        ('{"size": -1}', "size is -1, not an integer from 0 to"),
        ('{"size": 1e400}', "size is inf, not an integer"),
        ('{"size": 1, "name": 3}', "name is 3, not text or null"),
        ('{"size": 1, "list": [1, "2"]}', r"list\[1\] is '2', not an integer"),
        ('{"size": 1, "map": {"a": 1.5}}', r"map\.a is 1.5, not an integer"),
        ('{"size": 1, "rate": 1e400}', "rate is inf, not a number"),
    ],
)
def test_documents_that_break_their_schema_are_refused(text, message):
    schema = {
        "size": COUNT,
        "name?": (str, None),
        "list?": [int],
        "map?": {str: int},
        "rate?": float,
    }
    with pytest.raises(DocumentError, match=message):
        read_document(text.encode(), schema)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(DocumentError, match="not JSON"):
        read_document(b'{"a": "\xff"}', {})


def test_what_a_schema_takes_is_returned_as_it_is():
    document = {"size": 3, "rate": 2, "more": [None, {"x": 1}]}
    schema = {"size": COUNT, "rate": float, "more": [object]}
    assert read_document(json.dumps(document).encode(), schema) == document
