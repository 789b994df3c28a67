"""Scores a checkpoint on held-out documents of the toy world.

  python -m ar_omni_jax.evaluate --checkpoint=runs/toyworld/train --task=all --data=runs/toyworld/toy/test.jsonl

Prints a table of the trained model beside an untrained one of the same shape, chance (another document's true answer),
the tokenizers' ceiling and the judges' own error on the files themselves; writes evaluation.json (every number and
every example) and the generated files.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from ar_omni_jax.decoding.flags import (
    STRATEGY_FLAGS,
    add_strategy_flags,
    check_strategy_flags,
    guidance_of,
    strategies_of,
)
from ar_omni_jax.evaluation import toy_tasks
from ar_omni_jax.evaluation.recognizer import Recognizer, RecognizerError
from ar_omni_jax.files import replace_file
from ar_omni_jax.predictor import FOR_PEOPLE, Predictor


class EvaluationError(ValueError):
    """The evaluation cannot start; the message says what is missing and how to make it."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="directory of a training run or of one checkpoint")
    add("--data", required=True, type=Path, help="manifest of held-out documents (JSONL)")
    add("--task", default="all", choices=("all", *toy_tasks.JUDGED_TASKS), help="what to score")
    add("--limit", type=int, default=64, help="documents a task")
    add("--batch", type=int, default=16, help="prompts decoded together")
    add("--seed", type=int, default=0, help="of sampled answers")
    add("--output", type=Path, help="where results go (default: CHECKPOINT/evaluation)")
    add("--max_text", type=int, default=48, help="longest text answer, in tokens")
    add("--max_seconds", type=float, default=6.0, help="longest spoken answer")
    add("--no_baselines", action="store_true", help="the trained model alone")
    add("--no_recognizer", action="store_true", help="do not judge speech (pocketsphinx is in the [demo] extra)")
    add_strategy_flags(parser.add_argument_group("decoding"))
    options = parser.parse_args(arguments)
    check_strategy_flags(parser, options)
    for name in ("limit", "batch", "max_text", "max_seconds"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive")
    return options


def model_system(predictor, options: argparse.Namespace):
    """The model as a system: answers in batches of one size, one seed a document."""
    speech = predictor.tokenizers.speech
    longest = round(options.max_seconds * speech.sample_rate / speech.hop_length)
    how = {
        "budgets": {"text": options.max_text, "speech": longest},
        "strategies": strategies_of(options),
        "guidance": guidance_of(options),
    }

    def answer(task, documents):
        out = []
        for start in range(0, len(documents), options.batch):
            rows = list(documents[start : start + options.batch])
            seeds = [options.seed + start + k for k in range(len(rows))]
            out.extend(predictor.respond(rows, seeds=seeds, **how))
            print(f"  {task}: {len(out)}/{len(documents)}", flush=True)
        return out

    return answer


def systems_of(predictor, root: Path, options: argparse.Namespace) -> dict:
    """Name -> system, in the order of the table."""
    systems = {"trained model": model_system(predictor, options)}
    if not options.no_baselines:
        systems["untrained model"] = model_system(predictor.untrained(), options)
        systems["another document's answer"] = toy_tasks.chance_system(root)
        systems["tokenizers' ceiling"] = toy_tasks.ceiling_system(predictor.tokenizers, predictor.template, root)
        systems["judges on the files"] = toy_tasks.truth_system(root)
    return systems


def evaluate(options: argparse.Namespace) -> str:
    """Scores, writes everything under the output folder and returns the table."""
    if not options.data.is_file():
        raise EvaluationError(
            f"--data={options.data} does not exist; make it with python -m data_pipelines.toyworld --output=DIR"
        )
    tasks = toy_tasks.JUDGED_TASKS if options.task == "all" else (options.task,)
    recognizer = Recognizer() if "tts" in tasks and not options.no_recognizer else None
    documents = toy_tasks.load_documents(options.data, options.limit, tasks)
    alone = [task for task, rows in documents.items() if len(rows) == 1]
    if alone and not options.no_baselines:
        raise EvaluationError(
            f"--data={options.data} with --limit={options.limit} has one document of task {', '.join(alone)}, and "
            "chance is another document's answer: give two or more, or --no_baselines"
        )
    predictor = Predictor.load(options.checkpoint)
    predictor.root = options.data.parent
    output = options.output or Path(options.checkpoint) / "evaluation"
    rate = predictor.sample_rate
    recognize = recognizer and (lambda wave: recognizer.transcribe(wave, rate))
    results, seconds = {}, {}
    for name, system in systems_of(predictor, options.data.parent, options).items():
        print(f"==> {name}", flush=True)
        started = time.perf_counter()
        results[name], responses = toy_tasks.judge(system, documents, recognize)
        seconds[name] = time.perf_counter() - started
        if name == "trained model":
            for task, rows in responses.items():
                remove_answers(output / task)
                for k, response in enumerate(rows):
                    response.save(output / task, f"{k:03d}", rate)
    record = {
        "checkpoint": str(options.checkpoint),
        "step": predictor.step,
        "data": str(options.data),
        "documents": {task: len(rows) for task, rows in documents.items()},
        "seed": options.seed,
        "decoding": {name: getattr(options, name) for name in STRATEGY_FLAGS},
        "seconds": seconds,
        "systems": {name: {t: r.to_dict() for t, r in rows.items()} for name, rows in results.items()},
    }
    text = toy_tasks.table(results)
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / "evaluation.md", (text + "\n").encode())
    replace_file(output / "evaluation.json", (json.dumps(record, indent=1) + "\n").encode())
    return f"\n{text}\n\nWritten: {output}/evaluation.json, evaluation.md and the answers by task"


def remove_answers(folder: Path) -> None:
    """Removes an earlier evaluation's answers: no picture of theirs may stand where this one made none."""
    for path in folder.glob("*"):
        if re.fullmatch(r"\d{3,}(-\d+)?\.(json|txt|png|wav)", path.name):
            path.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    try:
        print(evaluate(options))
    except (EvaluationError, RecognizerError, *FOR_PEOPLE) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was scored, run the same command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
