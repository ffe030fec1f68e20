"""Messages: one line each, of what a terminal shows."""

from __future__ import annotations

import pytest

from genomepred.messages import say


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("error: é 中.fa", "error: é 中.fa"),
        ("two\nlines", "two lines"),
        ("a\x1b[2J\x07.fa", "a\\x1b[2J\\x07.fa"),
        ("\udcff.fa", "\\udcff.fa"),
        ("a\u202eb", "a\\u202eb"),
    ],
)
def test_a_message_is_one_line_that_commands_no_terminal(
    capsys: pytest.CaptureFixture[str], message: str, line: str
) -> None:
    say(message)
    assert capsys.readouterr().err == f"genomepred: {line}\n"
