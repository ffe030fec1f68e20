from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from genomepred.errors import OutputError
from genomepred.files import (
    Claim,
    discard_abandoned,
    own_folder,
    publishing,
    read_small,
    refuse_inputs,
    user_path,
    write_whole,
)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "g1.h5.json"
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    host = socket.gethostname()
    abandoned = tmp_path / f"g1.h5.{host}.{done.pid}.0a1b2c3d.tmp"
    others = [
        tmp_path / f"g1.h5.{host}.{os.getpid()}.0a1b2c3d.tmp",  # this process is alive
        tmp_path / f"g1.h5.elsewhere.{done.pid}.0a1b2c3d.tmp",
        tmp_path / f"g2.h5.{host}.{done.pid}.0a1b2c3d.tmp",
        tmp_path / "g1.h5.notes.tmp",
    ]
    for file in (abandoned, *others):
        file.write_bytes(b"x")
    discard_abandoned(path)
    assert not abandoned.exists()
    assert all(file.exists() for file in others)


def test_the_name_of_a_temporary_is_the_one_looked_for(tmp_path, monkeypatch):
    path = tmp_path / "g1.h5.json"
    monkeypatch.setattr("genomepred.files._is_alive", lambda process: False)
    with publishing(path) as temporary:
        temporary.write_bytes(b"x")
        discard_abandoned(path)
        assert not temporary.exists()
        temporary.write_bytes(b"y")
    assert path.read_bytes() == b"y"


def refuse(code):
    def call(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [None, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK])
@pytest.mark.parametrize("locks", [True, False])
def test_a_file_is_created_once_and_whole_with_or_without_hard_links(
    code, locks, tmp_path, monkeypatch
):
    path = tmp_path / "run.json"
    if code is not None:
        monkeypatch.setattr(os, "link", refuse(code))
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    write_whole(path, b"first", new=True)
    write_whole(path, b"second", new=True)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_claim_is_held_by_one_and_ends_with_it(tmp_path):
    path = tmp_path / "1.lock"
    first = Claim.take(path)
    assert first is not None
    assert first.exclusive
    assert Claim.take(path) is None
    first.release()
    again = Claim.take(path)
    assert again is not None
    again.release()
    assert Claim.take(tmp_path / "gone" / "1.lock") is None


def test_a_lock_that_is_a_link_leads_nowhere(tmp_path):
    (tmp_path / "1.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        Claim.take(tmp_path / "1.lock")
    assert not (tmp_path / "victim").exists()


def test_publishing_replaces_a_link_or_writes_what_it_names(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    with publishing(link, follow=True) as temporary:
        temporary.write_bytes(b"followed")
    assert link.is_symlink()
    assert target.read_bytes() == b"followed"
    with publishing(link) as temporary:
        temporary.write_bytes(b"own")
    assert not link.is_symlink()
    assert (link.read_bytes(), target.read_bytes()) == (b"own", b"followed")


def test_folders_of_ours_are_no_links(tmp_path):
    assert own_folder(tmp_path, ".parts", "g1").is_dir()
    assert own_folder(tmp_path, ".parts", "g1") == tmp_path / ".parts" / "g1"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"\.cache is a link"):
        own_folder(tmp_path, ".cache", "x")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_only_small_regular_files_are_read(tmp_path):
    small, pipe = tmp_path / "small", tmp_path / "pipe"
    small.write_bytes(b"1234")
    os.mkfifo(pipe)
    assert read_small(small, 4) == b"1234"
    with pytest.raises(OSError, match="larger than 3 bytes"):
        read_small(small, 3)
    with pytest.raises(OSError, match="not a regular file"):
        read_small(pipe, 4)
    with pytest.raises(OSError, match="not a regular file"):
        read_small(tmp_path, 4)


def test_a_link_that_is_not_followed_is_called_one(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(OSError, match="a link, which is not followed") as told:
        read_small(link, 10, follow=False)
    assert told.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError):
        read_small(link, 10)


def test_stale_handles_are_tried_again_and_then_count_as_absent(tmp_path, monkeypatch):
    path, real, answers = tmp_path / "small", os.open, [errno.ESTALE]
    path.write_bytes(b"1")

    def stale(*args, **kwargs):
        if answers:
            raise OSError(answers.pop(), "stale")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "open", stale)
    assert read_small(path, 9) == b"1"
    answers += [errno.ESTALE] * 9
    with pytest.raises(FileNotFoundError):
        read_small(path, 9)


@pytest.mark.parametrize("text", ["~/maps", "~user/maps", "s3://bucket/x", "https://a/b.fa", ""])
def test_paths_that_mean_something_else_are_refused(text):
    with pytest.raises(OutputError, match="expanded|URL|a path is empty"):
        user_path(text)
    assert user_path("maps/a~b:1") == Path("maps/a~b:1")


def test_streams_are_no_files_to_publish(tmp_path):
    for name in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/2", "/dev/../dev/stderr"):
        with (
            pytest.raises(OutputError, match="a file, not a stream"),
            publishing(Path(name), follow=True),
        ):
            pass
    with publishing(tmp_path / "-", follow=True) as temporary:
        temporary.write_text("x")
    assert (tmp_path / "-").read_text() == "x"


def test_an_output_takes_no_inputs_place(tmp_path):
    one, link, hard = (tmp_path / name for name in ("one", "link", "hard"))
    one.write_text("x")
    link.symlink_to(one)
    os.link(one, hard)
    for output in (one, link, hard, tmp_path / "." / "one"):
        with pytest.raises(OutputError, match="is an input of this command"):
            refuse_inputs(output, [tmp_path / "absent", one])
    refuse_inputs(tmp_path / "other", [one, tmp_path / "other"])
