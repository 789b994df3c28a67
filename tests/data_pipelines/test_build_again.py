"""Builds into folders that have shards already: splits beside each other, other options, changed input; the command."""

import errno
import io
import os

import pytest
from test_build_shards import build, files, make_corpus, make_tokenizers

from ar_omni_jax.documents import DocumentError
from data_pipelines import build_shards
from data_pipelines.dataset_info import read_info
from data_pipelines.progress import Progress
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), 40)


def test_commands_beyond_the_number_of_shards_have_nothing_to_do(manifest, tmp_path):
    """An array job may be larger than its corpus: six shards here, nine commands, the idle ones first and last."""
    build(manifest, tmp_path / "one")
    for worker in (7, 8, 6, 5, 4, 3, 2, 1):
        assert build(manifest, tmp_path / "many", worker_index=worker, worker_count=9) is None
    assert build(manifest, tmp_path / "many", worker_index=0, worker_count=9) is not None
    idle = make_tokenizers()
    assert build(manifest, tmp_path / "many", idle, worker_index=8, worker_count=9) is not None
    assert idle.image.calls == [] == idle.speech.calls
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_splits_share_a_directory(manifest, tmp_path):
    build(manifest, tmp_path)
    info = build(manifest, tmp_path, split="test")
    assert sorted(info.splits) == ["test", "train"] == sorted(read_info(tmp_path).splits)
    assert len(list(read_documents(tmp_path, "test"))) == 40


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK])
def test_a_shared_disk_without_locks_will_do(manifest, tmp_path, monkeypatch, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", flock)
    for split in ("train", "test"):
        info = build(manifest, tmp_path, split=split)
    assert sorted(info.splits) == ["test", "train"] == sorted(read_info(tmp_path).splits)


def test_another_build_into_the_same_directory_is_refused(manifest, tmp_path):
    build(manifest, tmp_path)
    with pytest.raises(BuildError, match="template was 'paper' and is 'released'"):
        build(manifest, tmp_path, template="released")
    with pytest.raises(BuildError, match=r"splits \['train'\] were made with settings.*paper.*released"):
        build(manifest, tmp_path, template="released", split="test")


def test_changed_input_is_refused(tmp_path):
    manifest = make_corpus(tmp_path, 10)
    build(manifest, tmp_path / "out")
    make_corpus(tmp_path, 9)
    with pytest.raises(BuildError, match="input_digest was .* and is"):
        build(manifest, tmp_path / "out")


@pytest.mark.parametrize("stopped", [False, True])
def test_shards_in_another_number_are_not_joined_by_others(tmp_path, stopped):
    """A corpus that has grown, or other ranges, have shards of other names, which would stand beside the old ones."""
    build(make_corpus(tmp_path, 20), tmp_path / "out", worker_count=1 + stopped)
    if stopped:
        (tmp_path / "out" / ".build" / "train-00000-of-00003.json").unlink()  # killed before it was written
    before = files(tmp_path / "out")
    for count, per_shard, number in ((20, 10, 2), (40, 7, 6)):
        manifest = make_corpus(tmp_path, count)
        with pytest.raises(BuildError, match=f"train shards.*there were 3 and are {number}.*another --output"):
            build(manifest, tmp_path / "out", records_per_shard=per_shard)
        assert files(tmp_path / "out") == before
    assert build(manifest, tmp_path / "out", split="test", records_per_shard=10) is not None  # a split of its own


# -- the command --------------------------------------------------------------------------------------------
def test_bad_options_are_named(manifest, tmp_path):
    for options, message in (
        ({"worker_index": 3, "worker_count": 3}, "worker_index 3"),
        ({"on_error": "ignore"}, "on_error must be one of fail, skip"),
        ({"error_budget": 2.0}, "error_budget in"),
        ({"records_per_shard": 0}, "records_per_shard 0"),
        ({"split": "a-b"}, "split 'a-b'"),
    ):
        with pytest.raises(BuildError, match=message):
            build(manifest, tmp_path, **options)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DocumentError, match="no records"):
        build(tmp_path / "empty.jsonl", tmp_path)


def test_the_command_prints_errors_without_a_traceback(tmp_path):
    with pytest.raises(SystemExit, match="build_shards: .*neither a directory nor"):
        build_shards.main([f"--input={tmp_path}/none.jsonl", f"--output={tmp_path}", "--tokenizers=none"])


def test_progress_tells_rates_and_time_left():
    stream = io.StringIO()
    with Progress(4, stream=stream) as progress:
        progress.add(2, 10)
    assert stream.getvalue().startswith("2/4 documents, ") and "tokens/s" in stream.getvalue()
    assert "s left" in stream.getvalue()


def test_an_unwritable_output_and_an_interruption_are_told_in_a_line(tmp_path, monkeypatch, capsys):
    manifest = tmp_path / "a.jsonl"
    manifest.write_text('{"id": "1", "task": "text", "turns": [[{"text": "one"}]]}\n')
    (tmp_path / "file").write_text("in the way")
    arguments = [f"--input={manifest}", f"--output={tmp_path / 'file' / 'shards'}"]
    with pytest.raises(SystemExit, match="build_shards: .*Not a directory"):
        build_shards.main(arguments)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_shards, "build", interrupted)
    with pytest.raises(SystemExit) as stopped:
        build_shards.main(arguments)
    assert stopped.value.code == 130 and "run the same command to go on" in capsys.readouterr().err
