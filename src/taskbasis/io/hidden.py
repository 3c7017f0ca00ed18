"""The hidden folder beside an output: held by one process, left by one that dies to the next.

``.NAME.partial`` stands beside NAME while NAME is made. Whoever made it holds a lock on a file
inside, which the system lets go when the process ends, however it ends. So a folder without a
holder is what a killed run left: the next run that wants the name takes it over and removes it,
or goes on from it. What is made is shown by one rename, and the rest is removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from taskbasis.errors import FileError

_LOCK, _KEY, _REPLACED = "lock", "key.json", "replaced"
_UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_UNLINKABLE = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)

_listeners: list[Callable[[str], None]] = []
_held: list[HiddenFolder] = []
_shown: list[tuple[Path, int]] = []


def on_remark(tell: Callable[[str], None]) -> None:
    """Have ``tell`` told what a killed run had left and what is kept, in a run that begins now."""
    _listeners[:] = [tell]
    _shown.clear()


def shown() -> list[Path]:
    """The outputs that this run has put in their places, if they still stand there."""
    return [out for out, inode in _shown if _inode(out) == inode]


def abandon() -> None:
    """Remove or leave at once what is being made, for who cannot wait for the workers."""
    for folder in list(_held):
        folder.release()


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, where the system can (Linux); says whether it did."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return rename is not None and rename(here, bytes(one), here, bytes(other), swap) == 0


class HiddenFolder:
    """``.NAME.partial`` beside an output, from :meth:`take` to :meth:`release`.

    Args:
        out: the output.
        kind: the end of the hidden name.

    Attributes:
        keep: whether ``release`` leaves what is in it to a later run.
    """

    def __init__(self, out: Path, kind: str = "partial") -> None:
        self.out = out
        self.path = out.parent / f".{out.name}.{kind}"
        self.keep = False
        self._lock: int | None = None

    def __enter__(self) -> HiddenFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Release it; what went wrong with a hidden file is said of the output."""
        self.release()
        if isinstance(error, OSError) and error.strerror:
            inside = error.filename is None or str(error.filename).startswith(str(self.path))
            if inside:
                raise FileError(f"{self.out}: cannot be written: {error.strerror}") from None
        if type(error) is FileError and str(self.path) in str(error):
            text = str(error).replace(str(self.path / "made"), str(self.out))
            raise FileError(text.replace(str(self.path), str(self.out))) from None

    def take(self, key: Mapping[str, str] | None = None, resume: bool = False) -> bool:
        """Make the folder, or take over that of a run that died.

        Args:
            key: what decides the bytes of the output, by what it is called in messages.
            resume: go on from what a run of the same key has left.

        Returns:
            Whether there is something to go on from.

        Raises:
            FileError: another process holds it, it cannot be made, or another run left it.
        """
        try:
            self._hold()
            if resume and self._lock is None:
                raise FileError(f"{self.out}: its file system has no locks; leave --resume out")
            self._put_back()
            if resume and self._goes_on(dict(key or {})):
                return True
            if self._clear():
                _remark(f"{self.out}: removed what a run that was killed had left of it")
            if key is not None:
                (self.path / _KEY).write_text(json.dumps(dict(key)), encoding="utf-8")
        except OSError as error:
            raise FileError(f"{self.out}: cannot be written: {error.strerror}") from None
        return False

    def _hold(self) -> None:
        """Lock it; where the file system has no locks, a folder of another name is our own."""
        while self not in _held:
            with suppress(FileExistsError):
                self.path.mkdir()
            descriptor = self._open_lock()
            if descriptor is None:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise FileError(
                    f"{self.out}: another process ({holder or 'just started'}) is writing it; wait "
                    "until it is done, or name another"
                ) from None
            except OSError as error:
                os.close(descriptor)
                if error.errno not in _UNLOCKABLE:
                    raise
                self._clear_empty()
                self.path = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
                self.path.mkdir()
                _held.append(self)
                return
            if _inode(self.path / _LOCK) != os.fstat(descriptor).st_ino:
                os.close(descriptor)  # its holder has just removed it
                continue
            self._lock = descriptor
            _held.append(self)
            with suppress(OSError):  # only for the message that others get
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def _open_lock(self) -> int | None:
        """The lock's file, opened; None where the folder has just gone, so that it is to be made.

        The lock is the first thing in it and the last one out: a folder that holds something else
        and no lock is not ours.
        """
        foreign = FileError(f"{self.path}: is in the way, not made by taskbasis; move it")
        if self.path.is_symlink():
            raise foreign
        try:
            found = [item.name for item in self.path.iterdir()]
            if found and _LOCK not in found:
                raise foreign
            return os.open(
                self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise foreign from None

    def _put_back(self) -> None:
        """Where two renames replace and only the first was done, what stood there comes back."""
        replaced = self.path / _REPLACED
        if os.path.lexists(replaced) and not os.path.lexists(self.out):
            os.rename(replaced, self.out)

    def _goes_on(self, key: Mapping[str, str]) -> bool:
        try:
            known = json.loads((self.path / _KEY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if known == key:
            return True
        old = known if isinstance(known, dict) else {}
        differ = [name for name in key if old.get(name) != key[name]]
        self._let_go()
        raise FileError(
            f"{self.out}: what is kept in {self.path.name} is of another run, whose "
            f"{' and '.join(differ) or 'record'} differ; leave --resume out to start afresh"
        )

    def _clear(self) -> bool:
        """Remove all but the lock; says whether there was anything."""
        found = [item for item in self.path.iterdir() if item.name != _LOCK]
        for item in found:
            _remove(item)
        return bool(found)

    def _clear_empty(self) -> None:
        with suppress(OSError):
            if not _holds(self.path):  # else the lock tells the next run that it is ours
                (self.path / _LOCK).unlink(missing_ok=True)
                self.path.rmdir()

    def show(self, made: Path, replace: bool) -> None:
        """Rename what was made to the output's name; what stood there is swapped in one step.

        Raises:
            FileError: something stands there that may not be replaced.
        """
        out, self.keep = self.out, False
        (self.path / _KEY).unlink(missing_ok=True)  # what is swapped in is nothing to go on from
        folder = out.is_dir() and not out.is_symlink()
        if not any(other.path in out.parents for other in _held):
            _shown.append((out, _inode(made)))
        if not replace and not (out.is_symlink() and not out.exists()):
            self._show_new(made, folder)
        elif (not made.is_dir() and not folder) or not os.path.lexists(out):
            os.replace(made, out)
        elif not exchange(made, out):
            retired = self.path / _REPLACED
            os.rename(out, retired)
            try:
                os.rename(made, out)
            except BaseException:
                os.rename(retired, out)
                raise

    def _show_new(self, made: Path, folder: bool) -> None:
        """Take the name in a way that fails where somebody else has taken it."""
        try:
            if made.is_dir():
                os.replace(made, self.out)  # an empty folder at most is lost
                return
            if folder:
                self.out.rmdir()
            try:
                os.link(made, self.out, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _UNLINKABLE:
                    raise
                os.replace(made, self.out)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise FileError(
                f"{self.out}: somebody else wrote it in the meantime; it was left as it is"
            ) from None

    def release(self) -> None:
        """Remove the folder and what is left in it, or with ``keep`` leave it to a later run."""
        if self not in _held:
            return
        if self.keep and self._lock is not None and _holds(self.path):
            _remark(f"{self.path}: keeps what is finished; the same again with --resume goes on")
        else:
            with suppress(OSError):
                self._clear()
            self._clear_empty()
            if self.path.is_dir() and self._lock is not None and _holds(self.path):
                _remark(f"{self.path}: could not be removed")
        self._let_go()

    def _let_go(self) -> None:
        _held.remove(self)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a small file, which takes the place of ``path`` when the block ends.

    Raises:
        FileError: a folder stands there, another process writes it, or it cannot be written.

    >>> path = getfixture("tmp_path") / "report.json"
    >>> with whole_file(path) as draft:
    ...     _ = draft.write_text("{}")
    ...     path.exists()
    False
    >>> path.read_text()
    '{}'
    """
    if path.is_dir():
        raise FileError(f"{path}: is a folder; name a file")
    with HiddenFolder(path) as folder:
        folder.take()
        draft = folder.path / "made"
        yield draft
        draft.chmod(0o644)
        sync(draft)
        folder.show(draft, replace=True)


def sync(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holds(folder: Path) -> bool:
    """Whether there is something in it to go on from, or to remove."""
    with suppress(OSError):
        return any(item.name not in (_LOCK, _KEY) for item in folder.iterdir())
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _inode(path: Path) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return -1


def _remark(sentence: str) -> None:
    for tell in _listeners:
        tell(sentence)
