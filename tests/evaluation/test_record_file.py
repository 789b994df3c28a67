"""Records by index: what a kill leaves is read, another run's or a damaged file is named."""

import json

import pytest

from ar_omni_jax.evaluation.record_file import RecordError, RecordFile

HEADER = {"seed": 1, "data": {"count": (2, 3)}}


def filled(path):
    log = RecordFile(path, HEADER)
    for index in (2, 0):
        log.append(index, {"text": f"é {index}"})
    return path


def test_records_are_read_back_and_the_last_of_an_index_counts(tmp_path):
    path = filled(tmp_path / "new" / "a.jsonl")
    log = RecordFile(path, HEADER)
    log.append(2, {"text": "other"})
    expected = {0: {"index": 0, "text": "é 0"}, 2: {"index": 2, "text": "other"}}
    assert log.records == RecordFile(path, HEADER).records == expected
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", range(1, 24, 3))
def test_a_cut_last_line_is_dropped_wherever_it_was_cut(tmp_path, cut):
    path = filled(tmp_path / "a.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    log = RecordFile(path, HEADER)
    assert log.records == {2: {"index": 2, "text": "é 2"}}
    log.append(0, {"text": "again"})
    assert [json.loads(line).get("index") for line in path.read_text().splitlines()] == [None, 2, 0]


def test_another_header_is_named_and_refused_or_dropped(tmp_path, capsys):
    path = filled(tmp_path / "a.jsonl")
    with pytest.raises(RecordError, match=r"2 records of another run \(seed, judge differ\); give another"):
        RecordFile(path, HEADER | {"seed": 2, "judge": "x"}, "refuse")
    assert len(RecordFile(path, HEADER).records) == 2  # nothing was lost
    assert RecordFile(path, HEADER | {"seed": 2}).records == {}
    assert "(seed differ); beginning anew" in capsys.readouterr().out
    assert RecordFile(path, HEADER | {"seed": 2}, "refuse").records == {}


@pytest.mark.parametrize("line", ['{"index" 2}', "{}", "[1]", '{"index": "2"}', "5", '{"index": null}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = filled(tmp_path / "a.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    for header in (HEADER, HEADER | {"seed": 2}):
        with pytest.raises(RecordError, match=r"a\.jsonl: line 2 is damaged .*remove the file"):
            RecordFile(path, header)


def test_a_first_line_that_is_no_header_is_another_run(tmp_path, capsys):
    path = filled(tmp_path / "a.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(['{"header": "x"}', *lines[1:]]) + "\n")
    assert RecordFile(path, HEADER).records == {}
    assert "2 records of another run" in capsys.readouterr().out


def test_an_empty_file_is_begun_anew(tmp_path):
    (tmp_path / "a.jsonl").touch()
    log = RecordFile(tmp_path / "a.jsonl", HEADER)
    log.append(0, {})
    assert RecordFile(tmp_path / "a.jsonl", HEADER, "refuse").records == {0: {"index": 0}}
