"""Search and cache: what is tried, what is kept, what is worth having. The compiler is played by arithmetic."""

import json

import pytest

from ar_omni_jax.compile_check import cache, search
from ar_omni_jax.compile_check.targets import GIB, find_target
from ar_omni_jax.config import ConfigError

CONFIG = "configs/pretrain_7b.py"
TARGET = find_target("v6e-64")
GIB_OF = {"zero_recompute": 8, "save_attention": 4, "full": 1}
SECONDS_OF = {"zero_recompute": 1.0, "save_attention": 1.2, "full": 1.3}


def result(policy: str, rows: int) -> dict:
    total = (10 + GIB_OF[policy] * rows) * GIB
    over = max(0, total - 31 * GIB)
    tokens = rows * 1300 * 64
    seconds = SECONDS_OF[policy] * (rows + 1)
    found = {"fits": not over, "over_bytes": over, "memory_bytes": {"total": total}, "seconds": 1.0}
    if over:
        return found
    rates = {"overlapped": seconds / 2, "serial": seconds, "mfu_overlapped": 0.6, "mfu_serial": 0.3}
    return found | {"roofline": rates | {"tokens_per_second_serial": tokens / seconds}}


@pytest.fixture
def compiler(monkeypatch):
    """Calls of the compiler, which are counted."""
    calls = []

    def check(spec, overrides, target, file):
        settings = dict(overrides)
        rows = int(settings["data.batch_size"]) // 64
        calls.append((settings["model.remat"], rows))
        return result(settings["model.remat"], rows), False

    monkeypatch.setattr(search, "cached_check", check)
    return calls


def test_larger_batches_are_not_tried_where_a_smaller_one_failed(compiler, tmp_path):
    said = []
    policies, rows = search.read_grid("zero_recompute,save_attention,full", "1,2,4,8")
    points = search.search(CONFIG, [], TARGET, policies, rows, tmp_path / "c.jsonl", said.append)
    assert compiler == [
        *(("zero_recompute", n) for n in (1, 2, 4)),  # 42 of 31 GiB at 4 rows
        *(("save_attention", n) for n in (1, 2, 4, 8)),
        *(("full", n) for n in (1, 2, 4, 8)),
    ]
    best = {(p["policy"], p["rows"]) for p in points if p["best"]}
    for point in points:
        if not point["fits"]:
            continue
        memory, speed = point["memory_bytes"]["total"], point["roofline"]["tokens_per_second_serial"]
        others = [p for p in points if p["fits"] and p["memory_bytes"]["total"] <= memory and p is not point]
        beaten = any(p["roofline"]["tokens_per_second_serial"] > speed for p in others)
        assert point["best"] != beaten
    assert ("full", 1) in best and ("zero_recompute", 4) not in best
    text = search.page(points, TARGET)
    assert text.index("worth having") < text.index("full              1") < text.index("the others")
    assert "11.00 GiB too many" in text and said[0].startswith("[1/12] zero_recompute")


def test_the_batch_is_rows_times_devices_times_micro_batches():
    assert search.batch_size(CONFIG, [("optimizer.accumulate", "2")], TARGET, 3) == 3 * 64 * 2
    tensor = [("mesh.tensor", "4")]
    assert search.batch_size(CONFIG, tensor, TARGET, 3) == 3 * 16


@pytest.mark.parametrize(
    "policies,rows,message",
    [
        ("ful", "1", "did you mean full"),
        ("full", "1,x", "x is no number"),
        ("full", "0", "0 is no"),
        ("", "1", "least one"),
    ],
)
def test_grids_that_make_no_sense(policies, rows, message):
    with pytest.raises(search.GridError, match=message):
        search.read_grid(policies, rows)


def test_if_nothing_compiles_the_error_is_told(monkeypatch, tmp_path):
    def check(*_):
        raise cache.CheckFailed("Mosaic failed")

    monkeypatch.setattr(search, "cached_check", check)
    with pytest.raises(cache.CheckFailed, match="Mosaic failed"):
        search.search(CONFIG, [], TARGET, ["full"], [1, 2], tmp_path / "c.jsonl", lambda line: None)


# -------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def process(monkeypatch):
    """The process that compiles: writes its answer where it is told, or nothing."""
    calls = []

    def run(command, **_):
        calls.append(command)
        answer = next(word.partition("=")[2] for word in command if word.startswith("--json="))
        failed = any("steps=13" in word for word in command)
        if not failed:
            with open(answer, "w") as file:
                json.dump({"fits": True, "call": len(calls)}, file)
        return type("Done", (), {"returncode": 2, "stderr": "WARNING: x\nerror: the compiler refused\nbye\n"})

    monkeypatch.setattr(cache.subprocess, "run", run)
    return calls


def test_a_check_is_made_once(process, tmp_path):
    file = tmp_path / "deep" / "c.jsonl"
    one = [("model.remat", "full")]
    assert cache.cached_check(CONFIG, one, TARGET, file) == ({"fits": True, "call": 1}, False)
    assert cache.cached_check(CONFIG, one, TARGET, file) == ({"fits": True, "call": 1}, True)
    assert cache.cached_check(CONFIG, [("model.remat", "none")], TARGET, file)[1] is False
    assert cache.cached_check(CONFIG, one, find_target("v6e-256"), file)[1] is False
    assert len(process) == 3 and "--config.model.remat=full" in process[0] and "--target=v6e-64" in process[0]


def test_a_line_that_a_crash_cut_short_is_made_again(process, tmp_path):
    file = tmp_path / "c.jsonl"
    cache.cached_check(CONFIG, [], TARGET, file)
    cache.cached_check(CONFIG, [("model.remat", "none")], TARGET, file)
    file.write_bytes(file.read_bytes()[:-20])
    assert cache.cached_check(CONFIG, [], TARGET, file)[1] is True
    assert cache.cached_check(CONFIG, [("model.remat", "none")], TARGET, file)[1] is False
    assert cache.cached_check(CONFIG, [("model.remat", "none")], TARGET, file)[1] is True


def test_a_process_without_an_answer_is_an_error_with_its_words(process, tmp_path):
    with pytest.raises(cache.CheckFailed, match="ended with 2: error: the compiler refused"):
        cache.cached_check(CONFIG, [("train.steps", "13")], TARGET, tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()


def test_what_the_step_does_not_depend_on_is_not_in_the_key():
    plain = cache.key(CONFIG, [], TARGET)
    assert plain == cache.key(CONFIG, [("train.log_every", "7"), ("seed", "3")], TARGET)
    assert plain != cache.key(CONFIG, [("loss.chunk", "512")], TARGET)
    assert plain != cache.key(CONFIG, [("train.skip_spikes", "8")], TARGET)  # its memory is a part of the state
    with pytest.raises(ConfigError, match="chunk"):
        cache.key(CONFIG, [("loss.chunks", "512")], TARGET)
