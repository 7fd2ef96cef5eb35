"""Files appear complete or not at all; a bad path is refused before any work is done.

Text is read here too, as UTF-8 whatever the machine's locale.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

Content = bytes | str | Callable[[BinaryIO], None]  # of a file to write

FILE_MODE = 0o640
FOLDER_MODE = 0o750
MAX_NAME = 254  # bytes of a base name; file systems take 255
MAX_PREFIX = 241  # the same for a prefix: "_fake_quant_model.onnx" and its like are added to it
_TEMPORARY = ".amct-"  # what names of unfinished files begin with


def check_file_name(
    path: object, argument: str, *, empty: type[Exception] = ValueError, limit: int = MAX_NAME
) -> None:
    """Raises unless `path` is a str that ends in a base name of at most `limit` bytes.

    Raises TypeError if it is not a str; `empty` (IsADirectoryError for `config_file`) if it is
    empty or ends in "/"; ValueError if the name is too long or holds a null character.

    >>> check_file_name("results/config.json", "config_file")
    >>> check_file_name("results/", "record_file")
    Traceback (most recent call last):
    ValueError: record_file: expected the path of a file, got 'results/'; add a file name
    """
    if not isinstance(path, str):
        raise TypeError(f"{argument}: expected a str, got {type(path).__name__}")
    if not path or path.endswith("/"):
        raise empty(f"{argument}: expected the path of a file, got {path!r}; add a file name")
    _check_name(path, argument, limit)


def check_save_path(path: object, argument: str = "save_path") -> None:
    """Raises unless `path` is a str `folder/prefix`; without a prefix it is empty or ends in "/".

    Raises TypeError if it is not a str; ValueError if the prefix is longer than 241 bytes.

    >>> check_save_path("results/model")
    """
    if not isinstance(path, str):
        raise TypeError(f"{argument}: expected a str, got {type(path).__name__}")
    _check_name(path, argument, MAX_PREFIX)


def check_writable(path: str) -> None:
    """Raises unless the file `path` can be written (missing folders are made when it is).

    Raises IsADirectoryError or FileExistsError if `path` is there and not a regular file,
    NotADirectoryError if a file stands where a folder is needed, PermissionError,
    FileNotFoundError or another OSError if nothing can be created in the folder.

    >>> check_writable("results/config.json")
    """
    target = _target(path)
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        text = f"{folder} is a file, not a folder; choose another path"
        raise NotADirectoryError(errno.ENOTDIR, text, path)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"no file can be created in {folder} ({error.strerror}); choose another folder"
        raise type(error)(error.errno, text, path) from None


def check_distinct(**paths: str) -> None:
    """Raises ValueError, naming both arguments, if two of `paths` lead to one file.

    >>> check_distinct(config_file="config.json", record_file="./config.json")
    Traceback (most recent call last):
    ValueError: record_file: './config.json' is config_file; choose another path
    """
    seen: dict[str, str] = {}
    for argument, path in paths.items():
        first = seen.setdefault(os.path.realpath(path), argument)
        if first != argument:
            raise ValueError(f"{argument}: {path!r} is {first}; choose another path")


def read_text(path: str, error: Callable[[str], Exception] = ValueError) -> str:
    """The text of the file `path`, without the byte order mark that some editors put before it.

    Raises FileNotFoundError or another OSError if it cannot be read, and `error` of a message for
    bytes that are not UTF-8.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: expected UTF-8 text ({reason})") from None


def content_bytes(content: Content) -> bytes:
    """All that a file with this content has in it.

    >>> content_bytes("text"), content_bytes(lambda file: file.write(b"written"))
    (b'text', b'written')
    """
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, bytes):
        return content
    file = io.BytesIO()
    content(file)
    return file.getvalue()


def write_files(files: Mapping[str, Content], *, warn_replaced: bool = True) -> None:
    """Writes every file, or none: on any failure what was there before is there again.

    A content that is a function is called on the open file. Files get mode 0640, new folders 0750;
    text is UTF-8. A file that is replaced is named in a warning unless it is empty or
    `warn_replaced` is false. Raises what `check_writable` raises, ValueError if two paths are one
    file, and OSError.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_files({f"{folder}/new/a.txt": "a", f"{folder}/b.bin": b"b"})
    ...     sorted(os.listdir(folder))
    ['b.bin', 'new']
    """
    contents: dict[Path, bytes | Callable[[BinaryIO], None]] = {}
    for path, content in files.items():
        check_writable(path)
        target = _target(path)
        if target in contents:
            raise ValueError(f"{path}: two of the files to write are this one")
        contents[target] = content.encode() if isinstance(content, str) else content
        if warn_replaced and target.exists() and target.stat().st_size:
            logger.warning("%s exists and is replaced", path)
    _write_all(contents)


def _check_name(path: str, argument: str, limit: int) -> None:
    name = os.path.basename(path)
    if "\0" in path:
        raise ValueError(f"{argument}: expected a path without null characters, got {path!r}")
    if len(os.fsencode(name)) > limit:
        size = len(os.fsencode(name))
        raise ValueError(f"{argument}: expected a name of at most {limit} bytes, got {size}")


def _target(path: str) -> Path:
    """Where `path` leads (a link stays a link); raises if no regular file can stand there."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; add a file name", path)
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "is not a regular file; choose another path", path)
    return target


def _write_all(contents: Mapping[Path, bytes | Callable[[BinaryIO], None]]) -> None:
    folders: list[Path] = []  # made here
    unfinished: dict[Path, _Unnamed] = {}  # target -> its new content
    previous: dict[Path, Path] = {}  # target -> its old content
    replaced: list[Path] = []
    try:
        for target, content in contents.items():
            _make_folder(target.parent, folders)
            unfinished[target] = _Unnamed(target.parent, content)
        for target in contents:
            if len(contents) > 1 and target.exists():
                previous[target] = target.with_name(_TEMPORARY + uuid.uuid4().hex)
                _keep(target, previous[target])
        for target, new in unfinished.items():
            new.move_to(target)
            replaced.append(target)
    except BaseException:
        for target in replaced:
            if target in previous:
                os.replace(previous.pop(target), target)
            else:
                target.unlink()
        for new in unfinished.values():
            new.discard()
        for leftover in previous.values():
            leftover.unlink(missing_ok=True)
        for folder in reversed(folders):
            folder.rmdir()
        raise
    for leftover in previous.values():
        leftover.unlink()
    for folder in {target.parent for target in contents}:
        _sync_folder(folder)


class _Unnamed:
    """A file on disk that has no name until it is complete: a kill leaves nothing of it.

    Where the file system knows no such files it has a temporary name.
    """

    def __init__(self, folder: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
        self._path = folder / (_TEMPORARY + uuid.uuid4().hex)
        try:
            self._handle = os.open(folder, os.O_TMPFILE | os.O_WRONLY, FILE_MODE)
            self._is_named = False
        except OSError:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            self._handle = os.open(self._path, flags, FILE_MODE)
            self._is_named = True
        try:
            with os.fdopen(os.dup(self._handle), "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
            os.fchmod(self._handle, FILE_MODE)
            os.fsync(self._handle)
        except BaseException:
            self.discard()
            raise

    def move_to(self, target: Path) -> None:
        """Puts the file in the place of `target`."""
        if not self._is_named:
            self._is_named = True
            source = f"/proc/self/fd/{self._handle}"
            try:
                # With a dir_fd Python follows the link in /proc to the file itself.
                os.link(source, self._path, src_dir_fd=self._handle)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, self._path)
                self._path.chmod(FILE_MODE)
        os.replace(self._path, target)
        self._is_named = False
        self._close()

    def discard(self) -> None:
        """Lets the file go, unless it was moved."""
        if self._is_named:
            self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _make_folder(folder: Path, made: list[Path]) -> None:
    if folder.exists():
        return
    _make_folder(folder.parent, made)
    folder.mkdir()
    made.append(folder)
    folder.chmod(FOLDER_MODE)  # not an argument of mkdir: the umask would take bits away


def _keep(target: Path, second: Path) -> None:
    """Gives the content of `target` a second name, so that replacing it loses nothing."""
    try:
        os.link(target, second)
    except OSError:  # a file system without hard links
        shutil.copy2(target, second)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
