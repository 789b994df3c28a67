"""The command with the real engine: a run that was killed goes on with a fresh one and ends with equal results."""

import json

import numpy as np
import pytest
import soundfile
from flax import nnx

from ar_omni_jax.evaluate import main
from ar_omni_jax.evaluation.record_file import RecordFile
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.predictor import Predictor
from ar_omni_jax.tokenizers.bundle import load_tokenizers


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_answers(tmp_path, monkeypatch):
    lines, rng = [], np.random.default_rng(0)
    for k in range(3):
        soundfile.write(tmp_path / f"{k}.wav", 0.1 * rng.standard_normal(6000 * (k + 1)), 16000)
        asr = [[{"speech": f"{k}.wav"}], [{"text": "a red circle"}]]
        tts = [[{"text": "a small blue square at the top left " * (k + 1)}], [{"speech": f"{k}.wav"}]]
        lines += [{"id": f"a{k}", "task": "asr", "turns": asr}, {"id": f"t{k}", "task": "tts", "turns": tts}]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizers = load_tokenizers("toyworld")
    config = TransformerConfig(
        vocab_size=tokenizers.vocabulary.size, num_layers=1, d_model=32, num_heads=2, num_kv_heads=2, head_dim=16,
        d_ff=48, max_length=512, dtype="float32",
    )  # fmt: skip
    model = Transformer(config, rngs=nnx.Rngs(0))
    made = []

    def load(cls, *args, **options):
        made.append(Predictor(model, tokenizers, "paper", 7))
        return made[-1]

    monkeypatch.setattr(Predictor, "load", classmethod(load))
    small = ["--max_text=4", "--max_seconds=0.3", "--batch=2", "--recognizer=tiny_judges:Counter", "--systems="]

    def run(folder):
        code = main(["--checkpoint=x", f"--data={manifest}", f"--output={tmp_path / folder}", *small])
        return code, tmp_path / folder / "evaluation.json"

    assert run("whole")[0] == 0
    append, count = RecordFile.append, [0]

    def killed(self, index, record):
        count[0] += 1
        if count[0] == 9:  # three answers and judgements of the first task are there, and two answers of the second
            raise KeyboardInterrupt
        append(self, index, record)

    monkeypatch.setattr(RecordFile, "append", killed)
    assert run("parts")[0] == 130
    code, path = run("parts")
    whole = json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    assert code == 0 and json.loads(path.read_text())["systems"] == whole["systems"]
    assert made[0].engine_size == made[2].engine_size
    records = [json.loads((tmp_path / f / "tts" / "002.json").read_text())["tokens"] for f in ("whole", "parts")]
    assert records[0] == records[1] and len(records[0]) > 3
