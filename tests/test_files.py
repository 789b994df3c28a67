"""Files that are replaced whole."""

import errno
import os

import pytest

from ar_omni_jax.files import replace_file


def test_a_full_disk_is_told_with_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    replace_file(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left .*record.json") as caught:
        replace_file(path, b"new")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_takes_no_file_is_told_with_the_file_that_was_wanted(tmp_path, monkeypatch):
    def full(name, *_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(name))

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="quota") as caught:
        replace_file(tmp_path / "record.json", b"new")
    assert caught.value.filename == str(tmp_path / "record.json")
