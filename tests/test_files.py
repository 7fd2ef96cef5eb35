"""Files appear complete or not at all, and bad paths are refused before work is done."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from amct_pytorch.files import check_file_name, check_save_path, check_writable, write_files


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


# --- write_files -------------------------------------------------------------------------------


def test_text_and_bytes_are_written_with_their_modes(tmp_path):
    write_files({f"{tmp_path}/new/deep/a.txt": "é", f"{tmp_path}/b.bin": b"\x00\xff"})
    assert (tmp_path / "new/deep/a.txt").read_bytes() == "é".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert [mode(tmp_path / name) for name in ("new/deep/a.txt", "b.bin")] == [0o640, 0o640]
    assert [mode(tmp_path / name) for name in ("new", "new/deep")] == [0o750, 0o750]
    assert names(tmp_path) == ["b.bin", "new"]


def test_modes_do_not_depend_on_the_umask(tmp_path):
    previous = os.umask(0o077)
    try:
        write_files({f"{tmp_path}/new/a.txt": "a"})
    finally:
        os.umask(previous)
    assert (mode(tmp_path / "new"), mode(tmp_path / "new/a.txt")) == (0o750, 0o640)


def test_a_relative_path_without_a_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files({"a.txt": "a"})
    assert names(tmp_path) == ["a.txt"]


def test_an_existing_file_is_replaced_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_text("old")
    write_files({str(path): "new"})
    assert path.read_text() == "new"
    assert caplog.messages == [f"{path} exists and is replaced"]


def test_the_warning_can_be_left_out(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("old")
    write_files({f"{tmp_path}/a.txt": "new"}, warn_replaced=False)
    assert not caplog.messages


def test_a_link_keeps_leading_to_its_file(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_files({f"{tmp_path}/link": "new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_long_name_is_written(tmp_path):
    write_files({f"{tmp_path}/{'x' * 254}": "a"})
    assert names(tmp_path) == ["x" * 254]


def test_two_paths_to_one_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two of the files to write are this one"):
        write_files({f"{tmp_path}/a": "1", f"{tmp_path}/./a": "2"})
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", [1, 2, 3], ids=["first", "second", "third"])
def test_a_failing_rename_leaves_everything_as_it_was(tmp_path, monkeypatch, failing):
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").write_text("old c")
    replace, count = os.replace, 0

    def fail_once(source, target):
        nonlocal count
        count += 1
        if count == failing:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="disk full"):
        write_files({f"{tmp_path}/{name}": "new" for name in ("a", "new/b", "c")})
    assert names(tmp_path) == ["a", "c"]
    assert (tmp_path / "a").read_text() == "old a"
    assert (tmp_path / "c").read_text() == "old c"


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_a_failing_write_leaves_everything_as_it_was(tmp_path, monkeypatch, step):
    (tmp_path / "a").write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_files({f"{tmp_path}/new/b": "new", f"{tmp_path}/a": "new"})
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_without_hard_links_a_copy_keeps_the_old_content(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")

    def refuse(*_, **__):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    write_files({f"{tmp_path}/{name}": "new" for name in ("a", "b")})
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["new", "new"]
    assert [mode(tmp_path / name) for name in "ab"] == [0o640, 0o640]


def test_where_files_must_have_names_nothing_else_changes(tmp_path, monkeypatch):
    open_file = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no such files here")
        return open_file(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    write_files({f"{tmp_path}/{name}": "new" for name in ("a", "b")})
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["new", "new"]
    assert [mode(tmp_path / name) for name in "ab"] == [0o640, 0o640]


def test_a_kill_while_files_are_written_leaves_nothing(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from amct_pytorch.files import write_files\n"
        "sync, calls = os.fsync, []\n"
        "def kill(handle):\n"
        "    calls.append(handle)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    sync(handle)\n"
        "os.fsync = kill\n"
        "write_files({f'{sys.argv[1]}/{n}': bytes(10**6) for n in 'abc'})\n"
    )
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert run.returncode == -9
    assert names(tmp_path) == []


# --- check_writable ----------------------------------------------------------------------------


def test_a_path_in_folders_to_be_made_is_writable_and_makes_none(tmp_path):
    check_writable(f"{tmp_path}/x/y/a.txt")
    assert names(tmp_path) == []


def test_below_a_regular_file_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder; choose another"):
        check_writable(f"{tmp_path}/file/x/a.txt")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; add a file name"):
        check_writable(str(tmp_path))


def test_a_device_is_not_replaced():
    with pytest.raises(FileExistsError, match="is not a regular file; choose another path"):
        check_writable(os.devnull)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_a_folder_that_takes_no_files_is_named():
    # FileNotFoundError for root, PermissionError for others.
    with pytest.raises(OSError, match=r"no file can be created in /proc .*choose another folder"):
        check_writable("/proc/new/a.txt")


def test_write_files_refuses_the_same_paths_and_writes_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        write_files({f"{tmp_path}/a.txt": "a", f"{tmp_path}/file/b.txt": "b"})
    assert names(tmp_path) == ["file"]


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a", "x/a.json", "x" * 254, "/tmp/a"])
def test_good_file_names(path):
    check_file_name(path, "config_file")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("", IsADirectoryError, "config_file: expected the path of a file, got ''"),
        ("x/", IsADirectoryError, "config_file: expected the path of a file, got 'x/'"),
        ("x" * 255, ValueError, "config_file: expected a name of at most 254 bytes, got 255"),
        ("é" * 128, ValueError, "config_file: expected a name of at most 254 bytes, got 256"),
        ("a\0b", ValueError, "config_file: expected a path without null characters"),
        (None, TypeError, "config_file: expected a str, got NoneType"),
    ],
    ids=["empty", "slash", "long", "long in bytes", "null", "no str"],
)
def test_bad_file_names(path, error, message):
    with pytest.raises(error, match=message):
        check_file_name(path, "config_file", empty=IsADirectoryError)


@pytest.mark.parametrize("path", ["", "x/"])
def test_an_empty_name_is_a_value_error_for_other_arguments(path):
    with pytest.raises(ValueError, match="record_file: expected the path of a file"):
        check_file_name(path, "record_file")


@pytest.mark.parametrize("path", ["", "x/", "x/model", "x" * 241])
def test_good_save_paths(path):
    check_save_path(path)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("x" * 242, ValueError, "save_path: expected a name of at most 241 bytes, got 242"),
        (1, TypeError, "save_path: expected a str, got int"),
    ],
)
def test_bad_save_paths(path, error, message):
    with pytest.raises(error, match=message):
        check_save_path(path)
