from __future__ import annotations

import os
import socket
import subprocess
import sys

from genomepred.store.files import discard_abandoned, publishing


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
    monkeypatch.setattr("genomepred.store.files._is_alive", lambda process: False)
    with publishing(path) as temporary:
        temporary.write_bytes(b"x")
        discard_abandoned(path)
        assert not temporary.exists()
        temporary.write_bytes(b"y")
    assert path.read_bytes() == b"y"
