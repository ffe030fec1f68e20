"""Folders of compiled functions: they are code, so kept only where nobody else can put any."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from functools import cache
from threading import Event
from typing import Any

# Enough to meet a quota that lets an empty file through.
_TRIED = bytes(1 << 16)
_tells = Event()  # set where what is compiled is told


def keep_numba(package: str) -> None:
    """Name a place for Numba's compiled functions where neither package nor home can be written.

    Numba refuses to load functions that it may not cache, as in a container without a home. Beside
    the package, and in the user's own cache, is where it keeps them by itself.

    Parameters
    ----------
    package : str
        Folder of the package.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    if os.access(os.path.join(package, "sequences"), os.W_OK):
        return
    if _writable(os.path.join(_user_cache(), "numba")):
        return
    os.environ["NUMBA_CACHE_DIR"] = private_folder()


def code_folder(package: str) -> str:
    """Folder of machine code: beside that of Numba's own cache.

    Parameters
    ----------
    package : str
        Folder of the package.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return os.path.join(os.environ["NUMBA_CACHE_DIR"], "genomepred")
    if os.access(os.path.join(package, "sequences"), os.W_OK):
        return os.path.join(package, "__pycache__")
    return os.path.join(_user_cache(), "genomepred", "code")


def begin_numba() -> None:
    """Import Numba without the SciPy that it looks for BLAS in, which takes half a second.

    For processes of our own: no function of ours multiplies matrices in Numba, but one in a user's
    program may.
    """
    blas = "scipy.linalg.cython_blas"
    if blas not in sys.modules:
        sys.modules[blas] = None  # type: ignore[assignment]
        try:
            import numba.np.arraymath  # noqa: F401 (looks for BLAS)
        finally:
            del sys.modules[blas]
    if _tells.is_set():
        _listen()


def keep_inductor() -> None:
    """Name a place for what ``torch.compile`` makes, which it else keeps in the shared /tmp."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        place = os.path.join(_user_cache(), "genomepred")
        folder = place if _writable(place) else private_folder()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "inductor")


def private_folder() -> str:
    """A folder for temporary code that is this user's and that no other user can write into.

    The same one for all processes of the user; where others have made it, a new one that goes when
    this process ends.
    """
    import tempfile

    folder = os.path.join(tempfile.gettempdir(), f"genomepred-{os.getuid()}")
    with suppress(OSError):
        os.mkdir(folder, 0o700)
    if is_private(folder):
        return folder
    import atexit
    import shutil

    own = tempfile.mkdtemp(prefix="genomepred-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    with suppress(OSError, AttributeError):  # there may be no stderr
        sys.stderr.write(
            f"genomepred: warning: {folder} is not private: compiled functions are not kept, which "
            "makes every start slow; set NUMBA_CACHE_DIR to a folder of your own\n"
        )
    return own


def is_private(folder: str) -> bool:
    """Whether it is a folder, no link, that this user owns and that others cannot write into."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return own and not found.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK)


def _user_cache() -> str:
    """The user's own cache; empty if there is no home, as of a user without an entry."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return cache if os.path.isabs(cache) else ""


def _writable(folder: str) -> bool:
    """Whether files can be put into a folder, which is made if absent."""
    if not os.path.isabs(folder):
        return False
    tried = os.path.join(folder, f".genomepred-{os.getpid()}")
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(tried, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        return os.write(descriptor, _TRIED) == len(_TRIED)
    except OSError:
        return False
    finally:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(tried)


def tell_of_compiling() -> None:
    """From here on say, when the first function is compiled, why that takes a while.

    What is kept from earlier runs is loaded and not compiled, and nothing is said.
    """
    _tells.set()
    if "numba" in sys.modules:
        _listen()


@cache
def _listen() -> None:
    from numba.core.event import Listener, register

    from genomepred.messages import say

    class Telling(Listener):
        told = False

        def on_start(self, event: Any) -> None:
            if not self.told:
                self.told = True
                say("compiling for this processor: up to half a minute, once on a machine")

        def on_end(self, event: Any) -> None:
            pass

    register("numba:compile", Telling())  # type: ignore[no-untyped-call]
