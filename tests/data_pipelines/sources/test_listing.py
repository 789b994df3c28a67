"""Which files a folder or a pattern stands for: links, loops, what may not be read, compressed files, mixed parts."""

import json
import os
import shutil

import pytest
import speech_trees as trees

from ar_omni_jax.documents import DocumentError
from data_pipelines.augment import list_noises
from data_pipelines.sources import open_source
from data_pipelines.sources.listing import list_files


def lines(path, *words):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    return path


def names(path, *suffixes):
    return [name for name, _ in list_files(path, *(suffixes or (".jsonl",)))]


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "disk2"
    lines(corpus / "a/0.jsonl", "a")
    lines(elsewhere / "deep/1.jsonl", "b")
    (corpus / "b").symlink_to(elsewhere)
    (corpus / "c").symlink_to(elsewhere / "deep")  # again what is there under b
    (elsewhere / "up").symlink_to(corpus)
    (corpus / "z.jsonl").symlink_to(elsewhere / "deep/1.jsonl")  # as the hub's cache keeps its files
    assert names(corpus) == ["a/0", "b/deep/1", "z"]
    assert len(open_source("text_jsonl", corpus)) == 3


def test_a_link_that_leads_nowhere_is_told(tmp_path):
    lines(tmp_path / "a.jsonl", "a")
    for link in ("b.jsonl", "part2"):
        (tmp_path / link).symlink_to(tmp_path / "unmounted" / link)
        with pytest.raises(DocumentError, match=f"{link}: leads to .*unmounted.*, which is not there"):
            list_files(tmp_path, ".jsonl")
        (tmp_path / link).unlink()
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(DocumentError, match="self: leads to self"):
        list_files(tmp_path, ".jsonl")


def locked(monkeypatch, folder):
    real = os.scandir

    def scandir(path):
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    lines(tmp_path / "a/0.jsonl", "a")
    lines(tmp_path / "b/1.jsonl", "b")
    trees.write_sound(tmp_path / "a/x.wav", trees.wave(0))
    trees.make_librispeech(tmp_path, 4)
    locked(monkeypatch, tmp_path / "b")
    for read in (lambda: list_files(tmp_path, ".jsonl"), lambda: list_noises(tmp_path)):
        with pytest.raises(DocumentError, match=f"{tmp_path / 'b'}: cannot be listed .Permission denied"):
            read()
    monkeypatch.undo()
    locked(monkeypatch, tmp_path / "train-clean-5/19/227")
    with pytest.raises(DocumentError, match="19/227: cannot be listed"):
        open_source("librispeech", tmp_path / "train-clean-5")


def test_a_file_that_may_not_be_read_is_told_whatever_else_is_there(tmp_path, monkeypatch):
    lines(tmp_path / "a.jsonl", "a")
    (tmp_path / "b.json").write_text("[]")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and not str(path).endswith("a.jsonl"))
    with pytest.raises(DocumentError, match="a.jsonl: may not be read by this user"):
        open_source("any_instruct", tmp_path)


def test_parts_of_librispeech_may_be_links(tmp_path):
    root, expected, *_ = trees.make_librispeech(tmp_path / "disk", 4)
    (tmp_path / "here").mkdir()
    for speaker in root.iterdir():
        (tmp_path / "here" / speaker.name).symlink_to(speaker)
    assert list(open_source("librispeech", tmp_path / "here").ids()) == list(expected)


@pytest.mark.parametrize("end", [".gz", ".zst", ".BZ2"])
def test_compressed_files_are_not_left_out_without_a_word(tmp_path, end):
    lines(tmp_path / "a.jsonl", "a")
    shutil.copy(tmp_path / "a.jsonl", tmp_path / f"b.jsonl{end}")
    with pytest.raises(DocumentError, match=f"1 files are compressed .*b.jsonl{end}; decompress them"):
        list_files(tmp_path, ".jsonl")
    with pytest.raises(DocumentError, match="compressed"):
        open_source("text_jsonl", tmp_path / f"b.jsonl{end}")
    lines(tmp_path / "b.jsonl", "b")  # decompressed, and the other one kept
    (tmp_path / f"images.tar{end}").write_bytes(b"of another format")
    assert names(tmp_path) == ["a", "b"]


def test_suffixes_may_be_in_capitals(tmp_path):
    lines(tmp_path / "a.jsonl", "a")
    lines(tmp_path / "b.JSONL", "b")
    assert names(tmp_path) == ["a", "b.JSONL"]


def test_a_pattern_takes_what_it_fits(tmp_path):
    for name in ("train-0", "train-1", "test-0", "sub/train-2"):
        lines(tmp_path / f"{name}.jsonl", name)
    (tmp_path / "train-notes.txt").write_text("not read")
    assert names(tmp_path / "train-*") == names(tmp_path / "train-*.jsonl") == ["train-0", "train-1"]
    assert names(tmp_path / "**/train-*") == ["sub/train-2", "train-0", "train-1"]
    assert names(tmp_path / "s*") == ["sub/train-2"]
    source = open_source("text_jsonl", tmp_path / "train-*")
    assert list(source.ids()) == ["train-0/1", "train-1/1"]
    with pytest.raises(DocumentError, match="nothing fits this pattern"):
        names(tmp_path / "valid-*")
    with pytest.raises(DocumentError, match="has no .*.parquet file"):
        names(tmp_path / "train-*", ".parquet")


@pytest.mark.parametrize("other", ["test-00000-of-00001", "validation", "dev/0", "test_sft-0", "Test.part", "eval-x"])
def test_what_is_tested_is_not_trained_on(tmp_path, other):
    lines(tmp_path / "train-00000-of-00002.jsonl", "a")
    lines(tmp_path / f"train-00001-of-00002/{'x'}.jsonl", "b")
    assert len(names(tmp_path)) == 2
    lines(tmp_path / f"{other}.jsonl", "c")
    with pytest.raises(DocumentError, match="files of several parts: .*name one part"):
        open_source("text_jsonl", tmp_path)
    assert len(names(tmp_path / "train*")) == 2


def test_words_that_only_look_like_parts_are_none(tmp_path):
    for name in ("trains", "contest", "testament", "device-0", "evaluate_this", "0001"):
        lines(tmp_path / f"{name}.jsonl", name)
    assert len(names(tmp_path)) == 6
