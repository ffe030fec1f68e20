"""Files: durable publication, locks, bounded reading of regular files, one-line errors, hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from io import FileIO
from pathlib import Path

from genomepred.errors import OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
# Answers of file systems without locks: NFS, FUSE, Lustre and DVS (524) among them.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF, 524}
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_STALE_TRIES = 3
# Answers of file systems that do not sync.
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
# Temporaries of other hosts, of which nobody here knows whether they live, are left so long.
_ABANDONED_SECONDS = 86_400
_STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_STREAM = re.compile(r"/dev/(std(in|out|err)$|fd/)|/proc/[^/]+/fd/")


class MissingFolderError(OutputError, FileNotFoundError):
    """The folder to write into does not exist, or was removed meanwhile."""


@contextmanager
def publishing(
    path: Path,
    suffix: str = ".tmp",
    follow: bool = False,
    entry: bool = True,
    new: bool = False,
) -> Iterator[Path]:
    """Temporary path in the same folder; synced and renamed to ``path`` at the end.

    It is removed if anything is raised meanwhile, so ``path`` is whole or as it was before.

    Parameters
    ----------
    path : Path
        A regular file or none yet. A link of that name is replaced.
    suffix : str
        Of the temporary's name, for writers that look at it.
    follow : bool
        Write what a link names instead, and leave the link: for outputs that the user names. What
        killed processes have left beside it is removed.
    entry : bool
        Wait until its name is on the disk too. Without, a power cut may leave none: for what is
        made again then, or is synced with its folder later.
    new : bool
        Leave a file of that name as it is, should there be one in the end. Without hard links and
        without locks the file is still whole, though that of two processes may be the last one's.

    Raises
    ------
    OutputError
        In place of any ``OSError``: disk full, no permission, not a regular file.
    """
    path = output_place(path) if follow else path
    temporary = path.parent / f"{path.stem[:120]}.{_owner()}{suffix}"
    try:
        if follow:
            discard_abandoned(path)
        if not new and path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a regular file; choose another output")
        yield temporary
        sync(temporary)
        (_rename_new if new else os.rename)(temporary, path)
        if entry:
            sync(path.parent, folder=True)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise output_error(path, error) from error
        raise


def _owner() -> str:
    """Name of this process and of one of its temporaries; see :func:`sweep_abandoned`."""
    return f"{os.uname().nodename}.{os.getpid()}.{os.urandom(4).hex()}"


def _rename_new(temporary: Path, path: Path) -> None:
    """Give a file its name unless that is taken, by a hard link; where there is none, by a lock."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # no hard links here: EPERM, ENOSYS, EOPNOTSUPP, EMLINK ...
        lock = path.with_name(f"{path.name}.lock")
        with Claim.take(lock, wait=True) or nullcontext():
            try:
                if not os.path.lexists(path):
                    os.rename(temporary, path)
            finally:
                lock.unlink(missing_ok=True)
    temporary.unlink(missing_ok=True)


class Claim(FileIO):
    """An exclusive lock on a file, held until released or until the process ends."""

    #: Whether the file system has locks: without, others may hold the same claim.
    exclusive = True
    #: Let others have it; so does the end of a ``with`` block.
    release = FileIO.close

    @classmethod
    def take(cls, path: Path, wait: bool = False) -> Claim | None:
        """The claim; None if another holder has it, or if the folder is gone.

        Parameters
        ----------
        path : Path
            The lock file, made if absent; a link of that name is refused.
        wait : bool
            Wait for the holder. A lock file that is removed meanwhile is made again.

        Raises
        ------
        OSError
            If the lock file cannot be opened.
        """
        while True:
            try:
                claim = cls(os.open(path, _LOCK_FLAGS, 0o666), "r+")
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESTALE):
                    return None
                raise
            try:
                fcntl.flock(claim.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                claim.exclusive = error.errno not in _NO_LOCKS
                if not claim.exclusive:
                    return claim
                claim.close()
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.ESTALE):
                    return None
                raise
            # A lock file that was removed meanwhile excludes nobody.
            with suppress(OSError):
                if os.path.samestat(os.fstat(claim.fileno()), os.lstat(path)):
                    return claim
            claim.close()
            if not wait:
                return None


def own_folder(root: Path, *names: str) -> Path:
    """A folder below ``root``, made if absent; links below ``root`` are not followed.

    Raises
    ------
    OutputError
        If one of the names is a link or no folder.
    OSError
        If it cannot be made.
    """
    folder = root
    for name in names:
        folder = folder / name
        with suppress(FileExistsError):
            folder.mkdir()
        if not stat.S_ISDIR(folder.lstat().st_mode):
            what = "a link" if folder.is_symlink() else "no folder"
            raise OutputError(f"{folder} is {what}; remove it, or use another --out")
    return folder


def open_regular(path: Path, *, follow: bool = True) -> int:
    """Descriptor of a regular file, open for reading; a pipe or a device never blocks.

    Raises
    ------
    OSError
        If it is absent or unreadable; ``EINVAL`` if it is no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "a link, which is not followed here", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_small(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Bytes of a regular file of at most ``limit`` bytes.

    A stale handle, as network file systems give of a file that was just replaced, is tried again;
    if it stays stale, the file counts as absent.

    Raises
    ------
    OSError
        If it is absent, unreadable, or no regular file; ``EFBIG`` if it is larger.
    """
    for _ in range(_STALE_TRIES):
        try:
            with open(open_regular(path, follow=follow), "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            continue
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
        return data
    raise FileNotFoundError(errno.ENOENT, "stale file handle", str(path))


def user_path(text: str | Path) -> Path:
    """Path of what a user wrote.

    Raises
    ------
    OutputError
        If it is empty, a URL, or begins with a ``~`` that no shell has expanded.
    """
    text = os.fspath(text)
    if not text:  # would be the current folder
        raise OutputError("a path is empty; is a variable of the shell not set? `.` is this folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise OutputError(f"{text}: URLs are not read or written; copy it, and give a path")
    if text.startswith("~"):
        raise OutputError(
            f"{text}: the shell has not expanded ~; put a blank before it, or write $HOME"
        )
    return Path(text)


def is_stdout(path: Path) -> bool:
    """Whether a path stands for standard output."""
    return str(path) in ("-", *_STDOUT)


def refuse_stream(path: Path, kind: str = "file") -> None:
    """Raise an OutputError for a name of an open stream: a file would take its target's place."""
    if is_stdout(path) or _STREAM.match(os.path.abspath(path)):
        raise OutputError(f"{path}: this output is a {kind}, not a stream; name one")


def output_place(path: Path) -> Path:
    """Path that an output which a user names is written to: a link's target.

    Raises
    ------
    OutputError
        If it is a stream or no regular file, or its folder is absent.
    """
    refuse_stream(path)
    place = Path(os.path.realpath(path))
    try:
        os.stat(place.parent)
        irregular = place.exists() and not place.is_file()
    except OSError as error:
        raise output_error(place, error) from error
    if irregular:
        raise OutputError(f"{place} is not a regular file; choose another output")
    return place


def refuse_inputs(path: Path, inputs: Iterable[Path]) -> None:
    """Raise an OutputError if an output would take the place of a file that it is made from."""
    for one in inputs:
        with suppress(OSError):
            if os.path.samefile(path, one):
                raise OutputError(f"{path} is an input of this command; name another output")


def discard_abandoned(path: Path) -> None:
    """Remove temporaries of a path that killed processes have left."""
    sweep_abandoned(path.parent, re.escape(path.stem[:120]))


def sweep_abandoned(folder: Path, stem: str = ".+") -> None:
    """Remove temporaries directly in a folder that killed processes have left, in one look.

    ``stem`` is a pattern of the names that they stand for.
    """
    ours = re.compile(rf"{stem}\.{re.escape(os.uname().nodename)}\.(\d+)\.[0-9a-f]+\.tmp")
    anyones = re.compile(rf"{stem}\..+\.\d+\.[0-9a-f]{{8}}\.tmp")
    oldest = time.time() - _ABANDONED_SECONDS
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(".tmp") or not anyones.fullmatch(entry.name):
                continue
            with suppress(OSError):
                found = ours.fullmatch(entry.name)
                dead = found and not _is_alive(int(found[1]))
                if dead or entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def make_folder(path: Path, instead: str = "name a folder") -> None:
    """Make a folder and those that it lies in, unless it is there.

    Raises
    ------
    OutputError
        If it is a file, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OutputError(f"{path} is a file; {instead}") from error
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """One line for an output that the system refused to write."""
    if error.errno in _FULL:
        return OutputError(
            f"{path}: the disk or quota of {path.parent} is full; free some space and run the same "
            "command again"
        )
    if error.errno in _FORBIDDEN:
        return OutputError(f"{path}: no permission to write into {path.parent}")
    if error.errno == errno.ENOENT:
        return MissingFolderError(f"{path}: there is no folder {path.parent}; make it first")
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")


def stdout_error(error: OSError) -> OutputError:
    """One line for a standard output that the system refused to write."""
    return OutputError(f"standard output: cannot be written: {error.strerror or error}")


def require_space(folder: Path, size: int) -> None:
    """Raise an OutputError unless the folder's disk has ``size`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        unit, name = (1e6, "MB") if size >= 1e6 else (1e3, "kB")
        raise OutputError(
            f"{folder}: {size / unit:,.1f} {name} are needed and {free / unit:,.1f} {name} are "
            "free; free some space and run the same command again"
        )


def sync(path: Path, folder: bool = False) -> None:
    """Wait until a file's bytes are on the disk, or a folder's entries where that is offered."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems do not sync, and some network file systems refuse to sync a folder.
        if not folder and error.errno not in _NO_SYNC:
            raise


def write_whole(path: Path, data: bytes, entry: bool = True, new: bool = False) -> None:
    """Write, sync and publish a small file; ``entry`` and ``new`` as of :func:`publishing`."""
    with (
        publishing(path, entry=entry, new=new) as temporary,
        open(temporary, "xb", buffering=0) as file,
    ):
        write_all(file.fileno(), data)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """``os.write`` until everything is written."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sha256_of(path: Path, *, follow: bool = True) -> str:
    """Hash of a regular file's bytes, in hexadecimal, read a megabyte at a time."""
    digest = hashlib.sha256()
    with open(open_regular(path, follow=follow), "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def publish_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of small files: whole, or what is there stays.

    An older folder of that name is replaced, at once where the file system can exchange two
    folders. Elsewhere a kill may leave none; :func:`recover_folder` puts the old one back.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(target)
    temporary = target.parent / f".{target.name[:120]}.{_owner()}.tmp"
    temporary.mkdir()
    try:
        staged = temporary / "new"
        staged.mkdir()
        for name, content in files.items():
            write_whole(staged / name, content)
        sync(staged, folder=True)
        if not (os.path.lexists(target) and _exchange(staged, target)):
            if os.path.lexists(target):
                target.rename(temporary / _OLD)
            staged.rename(target)
        sync(target.parent, folder=True)
    finally:
        _put_back(temporary, target)


_OLD = "old"


def recover_folder(target: Path) -> None:
    """Put back a folder that a process was killed in replacing; remove what killed ones left."""
    stem, host = re.escape(target.name[:120]), re.escape(os.uname().nodename)
    name = re.compile(rf"\.{stem}\.(.+)\.(\d+)\.[0-9a-f]{{8}}\.tmp")
    missing = not os.path.lexists(target)
    with suppress(OSError):
        for entry in os.scandir(target.parent):
            found = name.fullmatch(entry.name)
            if not found or not entry.is_dir(follow_symlinks=False):
                continue
            here = re.fullmatch(host, found[1]) is not None
            # Of another host nothing is known but that the folder is missing.
            if not _is_alive(int(found[2])) if here else missing:
                _put_back(Path(entry.path), target)


def _put_back(temporary: Path, target: Path) -> None:
    old = temporary / _OLD
    try:
        if old.is_dir() and not os.path.lexists(target):
            old.rename(target)
    except OSError:
        return  # better a leftover than a loss
    shutil.rmtree(temporary, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders at once; False, and no change, where the system cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # Linux
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), swap) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(b))
