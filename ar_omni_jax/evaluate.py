"""Scores a checkpoint on held-out documents.

  python -m ar_omni_jax.evaluate --checkpoint=runs/toyworld/train --task=all --data=runs/toyworld/toy/test.jsonl
  python -m ar_omni_jax.evaluate --checkpoint=runs/instruct/train --task=dialogues --data=runs/instruct/toy/test.jsonl
  python -m ar_omni_jax.evaluate --checkpoint=runs/large --task=asr --data=test-clean.jsonl --limit=0
  python -m ar_omni_jax.evaluate --checkpoint=runs/large --task=t2i --data=coco.jsonl --metrics=clip,fid

Any manifest will do. The toy world's documents get its own judges; others word error rate (asr; tts by Whisper), CIDEr
(caption) and CLIP score (t2i); docs/evaluation.md tells each protocol. Prints a table of the trained model beside
chance (another document's true answer), the tokenizers' ceiling and the judges' own error on the files themselves, and
on the toy world an untrained model; writes evaluation.json (every number and every example), evaluation.md and the
answers. Answers and judgements are kept as they come: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from ar_omni_jax.decoding.flags import add_strategy_flags, check_strategy_flags
from ar_omni_jax.evaluation.answer_store import remove_answers
from ar_omni_jax.evaluation.judges.plugins import JudgeError
from ar_omni_jax.evaluation.manifest import DIALOGUE_TASKS, JUDGED_TASKS, TASK_GROUPS
from ar_omni_jax.evaluation.measures.selection import KNOWN
from ar_omni_jax.evaluation.metrics.normalizers import NORMALIZERS, NormalizerError
from ar_omni_jax.evaluation.recognizer import RecognizerError
from ar_omni_jax.evaluation.record_file import RecordError
from ar_omni_jax.evaluation.session import EvaluationError, evaluate
from ar_omni_jax.evaluation.systems import NAMES
from ar_omni_jax.predictor import FOR_PEOPLE

__all__ = ["evaluate", "main", "parse_arguments", "remove_answers"]


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
    add("--task", default="all", choices=(*TASK_GROUPS, *JUDGED_TASKS, *DIALOGUE_TASKS), help="what to score")
    add("--limit", type=int, default=64, help="documents a task (0: all)")
    add("--batch", type=int, default=16, help="prompts decoded together")
    add("--seed", type=int, default=0, help="of sampled answers")
    add("--output", type=Path, help="where results go (default: CHECKPOINT/evaluation)")
    add("--max_text", type=int, default=48, help="longest text answer, in tokens")
    add("--max_seconds", type=float, default=6.0, help="longest spoken answer")
    add("--systems", type=_list, help=f"beside the trained model, of {','.join(NAMES)}")
    add("--no_baselines", action="store_true", help="the trained model alone")
    add("--on_error", default="fail", choices=("fail", "empty"), help="a document that cannot be asked: stop, or 0")
    add("--on_change", default="anew", choices=("anew", "refuse"), help="answers of another run under --output")
    _add_judge_flags(parser.add_argument_group("judging"))
    add_strategy_flags(parser.add_argument_group("decoding"))
    options = parser.parse_args(arguments)
    check_strategy_flags(parser, options)
    _check(parser, options)
    return options


def _add_judge_flags(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add("--metrics", type=_list, default=(), help=f"of {','.join(KNOWN)} (default: each task's usual one)")
    add("--normalizer", choices=NORMALIZERS, help="before words are compared (default: whisper; toy world: words)")
    add("--recognizer", help="pocketsphinx (toy world), whisper:FOLDER_OR_HUB_ID, MODULE:FACTORY")
    add("--no_recognizer", action="store_true", help="do not judge speech (pocketsphinx is in the [demo] extra)")
    add("--clip", default="clip", help="clip:FOLDER_OR_HUB_ID (default: openai/clip-vit-large-patch14), MODULE:FACTORY")
    add("--fid", default="cleanfid", help="features: cleanfid[:MODE], clip:FOLDER_OR_HUB_ID, MODULE:FACTORY")


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a usage error for values without a meaning."""
    for name in ("batch", "max_text", "max_seconds"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} must be a positive number")
    if options.limit < 0:
        parser.error("--limit must be positive, or 0 for all documents")
    for name, known in (("metrics", KNOWN), ("systems", tuple(NAMES))):
        unknown = [value for value in getattr(options, name) or () if value not in known]
        if unknown:
            parser.error(f"--{name}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    if options.no_baselines:
        options.systems = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    try:
        print(evaluate(options))
    except (EvaluationError, JudgeError, NormalizerError, RecognizerError, RecordError, *FOR_PEOPLE) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the answers that are there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
