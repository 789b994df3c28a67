"""Scores a checkpoint on held-out documents of the toy world.

  python -m ar_omni_jax.evaluate --checkpoint=runs/toyworld/train --task=all --data=runs/toyworld/toy/test.jsonl

Prints a table of the trained model beside an untrained one of the same shape, the tokenizers' ceiling and the judges'
own error on the files themselves; writes evaluation.json (every number and every example) and the generated files.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from absl import app, flags, logging

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "Directory of a training run or of one checkpoint.", required=True)
flags.DEFINE_string("data", None, "Manifest of held-out documents (JSONL).", required=True)
flags.DEFINE_enum("task", "all", ["all", "caption", "t2i", "asr", "tts"], "What to score.")
flags.DEFINE_integer("limit", 64, "Documents per task.", lower_bound=1)
flags.DEFINE_integer("batch", 16, "Prompts decoded together.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of sampled answers.")
flags.DEFINE_string("output", None, "Where results go (default: CHECKPOINT/evaluation).")
flags.DEFINE_integer("max_text", 48, "Longest text answer, in tokens.", lower_bound=1)
flags.DEFINE_float("max_seconds", 6.0, "Longest spoken answer.", lower_bound=0.1)
flags.DEFINE_bool("baselines", True, "Also score the untrained model, the tokenizers and the files themselves.")
flags.DEFINE_bool("recognizer", True, "Judge speech with pocketsphinx (needs the [demo] extra).")


def make_recognizer():
    """float32 [T] at 16 kHz -> words; None when switched off."""
    if not FLAGS.recognizer:
        return None
    from ar_omni_jax.evaluation.recognizer import Recognizer

    return Recognizer().transcribe


def model_system(predictor, batch: int, seed: int):
    """The model as a system: answers in batches of one size, one seed a document."""
    speech = predictor.tokenizers.speech
    budgets = {"text": FLAGS.max_text, "speech": round(FLAGS.max_seconds * speech.sample_rate / speech.hop_length)}

    def answer(task, documents):
        out = []
        for start in range(0, len(documents), batch):
            rows = list(documents[start : start + batch])
            seeds = [seed + start + k for k in range(len(rows))]
            out.extend(predictor.respond(rows, seeds=seeds, budgets=budgets))
            print(f"  {task}: {len(out)}/{len(documents)}", flush=True)
        return out

    return answer


def systems_of(predictor, root: Path) -> dict:
    """Name -> system, in the order of the table."""
    from ar_omni_jax.evaluation import toy_tasks

    systems = {"trained model": model_system(predictor, FLAGS.batch, FLAGS.seed)}
    if FLAGS.baselines:
        systems["untrained model"] = model_system(predictor.untrained(), FLAGS.batch, FLAGS.seed)
        systems["tokenizers' ceiling"] = toy_tasks.ceiling_system(predictor.tokenizers, predictor.template, root)
        systems["judges on the files"] = toy_tasks.truth_system(root)
    return systems


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    from ar_omni_jax.evaluation import toy_tasks
    from ar_omni_jax.predictor import Predictor

    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps

    manifest = Path(FLAGS.data)
    if not manifest.is_file():
        raise app.UsageError(
            f"--data={manifest} does not exist; make it with python -m data_pipelines.toyworld --output=DIR"
        )
    predictor = Predictor.load(FLAGS.checkpoint)
    predictor.root = manifest.parent
    tasks = toy_tasks.JUDGED_TASKS if FLAGS.task == "all" else (FLAGS.task,)
    documents = toy_tasks.load_documents(manifest, FLAGS.limit, tasks)
    recognize = make_recognizer()
    output = Path(FLAGS.output or Path(FLAGS.checkpoint) / "evaluation")
    output.mkdir(parents=True, exist_ok=True)
    results, seconds = {}, {}
    for name, system in systems_of(predictor, manifest.parent).items():
        print(f"==> {name}", flush=True)
        started = time.perf_counter()
        results[name], responses = toy_tasks.judge(system, documents, recognize)
        seconds[name] = time.perf_counter() - started
        if name == "trained model":
            for task, rows in responses.items():
                for k, response in enumerate(rows):
                    response.save(output / task, f"{k:03d}", predictor.sample_rate)
    text = toy_tasks.table(results)
    record = {
        "checkpoint": str(FLAGS.checkpoint),
        "step": predictor.step,
        "data": str(manifest),
        "documents": {task: len(rows) for task, rows in documents.items()},
        "seed": FLAGS.seed,
        "seconds": seconds,
        "systems": {name: {t: r.to_dict() for t, r in rows.items()} for name, rows in results.items()},
    }
    (output / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / "evaluation.md").write_text(text + "\n")
    print(f"\n{text}\n\nWritten: {output}/evaluation.json, evaluation.md and the answers by task")


if __name__ == "__main__":
    app.run(main)
