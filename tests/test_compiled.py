from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from genomepred import compiled
from tests.helpers import genomepred, python


@pytest.fixture
def shared_tmp(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # else what the test leaves there would stay
        monkeypatch.delenv(name)
    return tmp_path / f"genomepred-{os.getuid()}"


def test_a_private_folder_is_made_once_and_taken_again(shared_tmp):
    assert compiled.private_folder() == str(shared_tmp)
    assert shared_tmp.stat().st_mode & 0o777 == 0o700
    assert compiled.private_folder() == str(shared_tmp)


@pytest.mark.parametrize("foreign", ["open", "link", "file", "group"])
def test_what_others_can_write_is_not_taken_and_that_is_said_once(shared_tmp, foreign, capsys):
    if foreign == "link":
        (shared_tmp.parent / "theirs").mkdir(mode=0o700)
        shared_tmp.symlink_to("theirs")
    elif foreign == "file":
        shared_tmp.touch()
    else:
        shared_tmp.mkdir()
        shared_tmp.chmod(0o777 if foreign == "open" else 0o770)
    found = Path(compiled.private_folder())
    assert found != shared_tmp
    assert found.stat().st_mode & 0o777 == 0o700
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"genomepred: warning: {shared_tmp} is not private")


def test_numba_keeps_what_it_compiles_where_it_can(shared_tmp, monkeypatch, tmp_path):
    package = tmp_path / "package"
    (package / "sequences").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: "package" not in str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    compiled.keep_numba(str(package))
    assert "NUMBA_CACHE_DIR" not in os.environ  # the user's own cache, by itself
    assert list((tmp_path / "home" / "numba").iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    compiled.keep_numba(str(package))
    assert os.environ["NUMBA_CACHE_DIR"] == str(shared_tmp)
    compiled.keep_inductor()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(shared_tmp / "inductor")


def test_a_user_without_a_home_has_no_cache_of_that_name_here(shared_tmp, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no entry in passwd
    monkeypatch.chdir(tmp_path)
    compiled.keep_inductor()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(shared_tmp))
    assert not (tmp_path / "~").exists()


def test_compiling_is_told_once_before_it_is_done_and_never_of_what_is_kept(tmp_path):
    code = (
        "from numba import njit\n"
        "from genomepred.compiled import begin_numba, tell_of_compiling\n"
        "@njit(cache=True)\n"
        "def f(x): return x + 1\n"
        "@njit(cache=True)\n"
        "def g(x): return f(x) + 1\n"
        "tell_of_compiling(); begin_numba(); begin_numba(); g(1)\n"
    )
    (tmp_path / "functions.py").write_text(code)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first = python("-c", "import functions", cwd=tmp_path, **environment)
    assert first.returncode == 0
    assert first.stderr.startswith("genomepred: compiling for this processor: ")
    assert first.stderr.count("\n") == 1
    again = python("-c", "import functions", cwd=tmp_path, **environment)
    assert (again.returncode, again.stderr) == (0, "")


def test_a_run_begins_by_telling(tmp_path, monkeypatch, tiny_model):
    told = []
    monkeypatch.setattr("genomepred.runs.run.tell_of_compiling", lambda: told.append(True))
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 100)
    genomepred("predict", tmp_path / "a.fa", "--model", tiny_model, "--out", tmp_path / "out")
    assert told


# Without our kernels it is the functions of the reader that are compiled.
@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_a_first_run_tells_that_it_compiles_and_the_next_does_not(tmp_path, kernels):
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 100)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = ["-m", "genomepred", "predict", "--model", "ctcf", "--genomes", "a.fa"]
    command += ["--kernels", kernels, "--out"]
    first = python(*command, "1", cwd=tmp_path, **environment)
    assert first.stderr.count("compiling for this processor") == 1
    assert "compiling" not in python(*command, "2", cwd=tmp_path, **environment).stderr
