"""The latency measurement at tiny scale: what it counts, what it compares, and what it says."""

import dataclasses
import json
import math

import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.decoding.engine import Engine, Request
from ar_omni_jax.evaluation import latency, latency_goals, latency_runs
from ar_omni_jax.evaluation.agreement import compare
from ar_omni_jax.evaluation.hf_baseline import Baseline, BaselineError
from ar_omni_jax.evaluation.latency_runs import UNCONSTRAINED, measure_batch, measure_speech, random_prompt, run
from ar_omni_jax.evaluation.latency_subjects import cache_bytes, random_subject, weight_bytes
from ar_omni_jax.evaluation.machine import copy_bandwidth
from ar_omni_jax.machine import machine
from ar_omni_jax.model.config import chameleon_7b
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.tokenizers.speech import SpeechTokenizer
from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from tests.model.helpers import make_model

SETTINGS = {"weights": "float32", "prompt": 8, "new": 12, "chunk": 4, "bandwidth": 1e9}  # of a batch


@pytest.fixture(scope="module")
def subject():
    made = random_subject("tiny", dtype="float32")
    made.model = make_model(made.model.config)  # norms away from one and zero: a wrong mapping would show
    made.speech = tiny_codec
    return made


def tiny_codec():
    config = {
        "encoder": {"n_filters": 4, "dimension": 8, "ratios": (2, 3, 4), "lstm_layers": 1},
        "backbone": {"dim": 32, "intermediate_dim": 24, "num_layers": 1, "position_net": False},
        "head": {"n_fft": 48, "hop_length": 24},
        "codebook_size": 64,
        "sample_rate": 960,
        "causal": True,
    }
    return SpeechTokenizer(SpeechCodec(SpeechCodecConfig.from_dict(config), rngs=nnx.Rngs(0)), "tiny")


def test_bytes_of_a_step_are_those_of_the_matrices():
    config = chameleon_7b()
    blocks_and_output = config.parameter_count() - config.vocab_size * config.d_model
    norms = 32 * (2 * 4096 + 4 * 128) + 4096
    assert weight_bytes(config, "bfloat16") == 2 * (blocks_and_output - norms)
    assert weight_bytes(config, "float32") == 2 * weight_bytes(config, "bfloat16")
    # The figures of the design: 3.14 ms and 1.57 ms a token at 4.3 TB/s, and half a MiB of cache a token.
    assert weight_bytes(config, "bfloat16") / 4.3e12 == pytest.approx(3.14e-3, rel=0.01)
    assert weight_bytes(config, "int8") / 4.3e12 == pytest.approx(1.57e-3, rel=0.01)
    assert cache_bytes(config, 1, 1, "bfloat16") == 2**19
    assert cache_bytes(config, 3, 10, "float32") == 60 * 2**19


def test_the_engine_makes_the_tokens_that_are_counted(subject):
    engine = Engine(subject.model, subject.vocabulary, rows=2, capacity=64, chunk=4)
    prompts = [random_prompt(subject, 8, seed) for seed in range(2)]
    assert prompts[0][0] == subject.vocabulary.marker("bos") and (prompts[0] != prompts[1]).any()
    made = run(engine, [Request(prompt=ids, task=UNCONSTRAINED, max_new_tokens=11) for ids in prompts])
    assert [len(answer) for answer in made.answers] == [11, 11] and made.tokens == 22
    assert 0 < made.first <= made.last <= made.seconds and made.first_count < 11 and made.step > 0


def test_hf_has_the_same_weights_and_makes_the_same_tokens(subject):
    pytest.importorskip("transformers")
    baseline = Baseline(subject.model, subject.vocabulary)
    row = measure_batch(subject, 3, repeats=1, short_repeats=2, baseline=baseline, **SETTINGS)
    assert row["hf"]["same_ids"] == 1.0 and row["hf"]["margin"] is None
    assert row["hf"]["ratio"] == pytest.approx(row["tokens_per_second"] / row["hf"]["tokens_per_second"])
    assert row["tokens"] == 36 and "note" not in row
    config = subject.model.config
    needed = weight_bytes(config, "float32") + cache_bytes(config, 3, 14, "float32")
    assert row["percent_of_limit"] == pytest.approx(100 * needed / 1e9 / (row["step_ms"] / 1e3))
    other = Transformer(subject.model.config, rngs=nnx.Rngs(5))
    subject_2 = type(subject)("other", other, subject.vocabulary, "", tiny_codec)
    row = measure_batch(subject_2, 1, repeats=1, short_repeats=2, baseline=baseline, **SETTINGS)
    assert row["hf"]["same_ids"] < 0.9 and row["hf"]["margin"] > 0.01  # the comparison can fail
    assert (row["repeats"], row["first_token_repeats"]) == (1, 2) and row["hf"]["first_token_ms"] > 0


def test_the_margin_is_that_of_the_first_difference(subject):
    model = subject.model
    prompts = np.stack([random_prompt(subject, 8, seed) for seed in range(2)])
    answers = [np.arange(10, 15, dtype=np.int32), np.arange(20, 25, dtype=np.int32)]
    theirs = np.stack(answers).copy()
    assert compare(model, prompts, answers, theirs) == {"same_ids": 1.0, "margin": None}
    theirs[1, 2:] = (7, 8, 9)
    tokens = np.concatenate([prompts[1], answers[1][:2]])[None]
    hidden = model(tokens, np.arange(10)[None], np.ones((1, 10), np.int32))
    logits = np.asarray(model.logits(hidden))[0, -1]
    found = compare(model, prompts, answers, theirs)
    assert found["same_ids"] == 6 / 8  # the last of each answer does not count
    assert found["margin"] == pytest.approx(abs(logits[22] - logits[7]) / logits.std(), rel=1e-4)


def test_a_model_that_hf_cannot_express_is_said_so(subject):
    pytest.importorskip("transformers")
    config = random_subject("tiny", dtype="float32").model.config
    bare = Transformer(type(config)(**{**vars(config), "qk_norm": False}), rngs=nnx.Rngs(0))
    with pytest.raises(BaselineError, match="always has qk-norm"):
        Baseline(bare, subject.vocabulary)


def test_speech_is_timed_with_and_without_its_codec(subject):
    spoken = measure_speech(subject, codes=20, weights="float32", prompt=8, chunk=4, repeats=3)
    assert spoken["repeats"] == 3
    assert 0 < spoken["codes"] <= 20
    assert spoken["seconds_of_sound"] == pytest.approx(spoken["codes"] / 40)
    assert 1 <= spoken["first_sound_codes"] <= 4 and spoken["chunk"] == 4
    assert 0 < spoken["first_token_ms"] <= spoken["first_sound_ms"]
    assert spoken["rtf_with_codec"] > 0 and spoken["rtf_without_codec"] > 0


def test_the_machine_has_a_name_and_a_speed():
    found = machine()
    assert found["processor"] and found["cores"] >= 1 and "cpu" in found["device"]
    assert 1e8 < copy_bandwidth(megabytes=4, repeats=2) < 1e13


def test_the_command_writes_a_record_and_a_table(tmp_path, capsys, monkeypatch, subject):
    monkeypatch.setattr(latency, "random_subject", lambda name, dtype: subject)
    arguments = ["--model=tiny", "--batches=1,2", "--prompt=8", "--new=12", "--chunk=4", "--repeats=1", "--hf=no"]
    arguments += ["--speech_codes=8", "--short_repeats=2", "--bandwidth=10", f"--output={tmp_path / 'latency.json'}"]
    assert latency.main(arguments) == 0
    record = json.loads((tmp_path / "latency.json").read_text())
    assert [row["batch"] for row in record["batches"]] == [1, 2]
    assert [(row["first_token_repeats"], row["repeats"]) for row in record["batches"]] == [(2, 1), (1, 1)]
    assert record["speech"]["repeats"] == 2
    assert record["bandwidth_gb_s"] == 10 and record["hf"] == "left out (--hf=no)"
    for row in record["batches"]:
        for value in row.values():
            assert not isinstance(value, float) or math.isfinite(value)
        assert row["compile_seconds"] >= 0
    out = capsys.readouterr().out
    for row in record["batches"]:
        (line,) = [x for x in out.splitlines() if f"{row['tokens_per_second']:>9.0f} {row['step_ms']:>8.2f}" in x]
        assert line.endswith(f" {row['first_token_repeats']}, {row['repeats']}")
    assert "with; medians of 2 runs" in out and "runs: medians are of so many" in out
    assert f"RTF {record['speech']['rtf_without_codec']:.3f} without codec" in out
    assert record["machine"]["processor"] in out


def test_a_figure_is_the_median_of_as_many_runs_as_the_record_says(monkeypatch, subject):
    """First tokens of 1, 2, 3 ... ms, whole runs before short ones."""
    count = [0]

    def timed(engine, requests):
        made = run(engine, requests)
        count[0] += 1
        return dataclasses.replace(made, first=count[0] / 1e3) if len(made.answers[0]) == 1 else made

    monkeypatch.setattr(latency_runs, "run", timed)
    monkeypatch.setattr(latency_runs, "REST", 0.0)
    row = measure_batch(subject, 1, repeats=3, short_repeats=20, baseline=None, **SETTINGS)
    before = count[0] - 20
    assert (row["repeats"], row["first_token_repeats"]) == (3, 20) and before >= 4
    assert row["first_token_ms"] == pytest.approx(before + 10.5)
    assert row["tokens"] == 12, "the other figures are of whole runs"


def test_the_protocol_asks_for_twenty_runs_of_what_is_short():
    for command in (latency, latency_goals):
        assert command.parse_arguments([]).short_repeats >= 20 and command.parse_arguments([]).repeats == 3


def test_bad_flags(capsys):
    for arguments in (["--batches=one"], ["--batches=0"], ["--repeats=0"], ["--short_repeats=0"], ["--model=9b"]):
        with pytest.raises(SystemExit):
            latency.parse_arguments(arguments)


def test_random_prompts_are_text(subject):
    ids = random_prompt(subject, 50, 0)[1:]
    span = subject.vocabulary.text
    assert ((span.start <= ids) & (ids < span.stop)).all() and len(np.unique(ids)) > 30
