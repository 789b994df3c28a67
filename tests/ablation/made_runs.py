"""Runs of the ablation and the probe made by hand, in memory and as the files that real ones leave."""

import json

import numpy as np
from PIL import Image

from ar_omni_jax.ablation import runner
from ar_omni_jax.ablation.results import Run


def made_run(seed, attributes=(1, 1), edits=(1, 1), words=(4, 4), norms=(), losses=(), held_out=()):
    """A run that was judged on two tasks; norms, losses: of every record, held_out: of every validation."""
    count = max(len(norms), len(losses))
    train = [{"step": i + 1, "kind": "train", "skipped": 0.0} for i in range(count)]
    for name, values in (("grad_norm", norms), ("weighted_nll", losses)):
        for record, value in zip(train, values, strict=False):
            record[name] = value
    validation = [{"step": i, "weighted_nll": x, "nll/text": x} for i, x in enumerate(held_out)]
    top = {"caption": np.array(attributes, float), "asr": np.array(edits, float)}
    bottom = {"caption": np.ones(len(attributes)), "asr": np.array(words, float)}
    return Run(seed, top, bottom, train, validation)


def write_run(output, variant, seed, score, steps=2):
    """The files that a training and an evaluation leave."""
    folder = runner.workdir(output, variant, seed)
    (folder / "evaluation" / "t2i").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "evaluation" / "t2i" / "000.png")
    (folder / "evaluation" / "t2i" / "000.json").write_text(json.dumps({"files": ["000.png"]}))
    examples = [{"attributes": score, "truth": f"a <red> circle {i}", "answer": f"seen {i}"} for i in range(3)]
    systems = {"trained model": {task: {"examples": examples} for task in ("caption", "t2i")}}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps({"systems": systems}))
    write_metrics(folder, [1.0] * steps, held_out=[1.25 + seed])


def write_metrics(folder, losses, norms=None, held_out=()):
    """metrics.jsonl of a training that logged every step."""
    folder.mkdir(parents=True, exist_ok=True)
    norms = norms or [1.0] * len(losses)
    records = [
        {"step": i + 1, "kind": "train", "loss": x, "weighted_nll": x, "nll/text": x, "grad_norm": n, "skipped": 0.0}
        for i, (x, n) in enumerate(zip(losses, norms, strict=True))
    ]
    records += [{"step": len(losses), "kind": "validation", "nll/text": x, "weighted_nll": x} for x in held_out]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
