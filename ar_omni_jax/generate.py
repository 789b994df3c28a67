"""Asks a checkpoint one thing and writes what it answers as text, PNG and WAV.

python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=t2i --text="a large red circle at the top left"
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=tts --text="a small blue cross in the center"
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=asr --speech=question.wav
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=caption --image=picture.png
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=chat_image --speech=request.wav
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from ar_omni_jax.documents import Document
from ar_omni_jax.inference import user_document
from ar_omni_jax.predictor import FOR_PEOPLE, Predictor

# Parts of a request, by task: (needed, allowed besides). A chat needs at least one part.
PARTS: dict[str, tuple[set[str], set[str]]] = {
    "t2i": ({"text"}, set()),
    "tts": ({"text"}, set()),
    "asr": ({"speech"}, set()),
    "caption": ({"image"}, set()),
    "chat_speech": ({"speech"}, {"text"}),
    "chat_image": ({"speech"}, {"text"}),
    "chat": (set(), {"text", "image", "speech"}),
    "text": (set(), {"text"}),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a part that is missing or does not belong to the task is a usage error."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="directory of a training run")
    add("--task", required=True, choices=sorted(PARTS), help="what to do")
    add("--text", help="the text of the request")
    add("--image", help="an image file (PNG, JPEG, WebP ...)")
    add("--speech", help="a sound file (WAV, FLAC ...)")
    add("--output", type=Path, default=Path("generated"), help="directory for the answer")
    add("--name", help="base name of the files (default: the task)")
    add("--seed", type=int, default=0, help="of what is sampled; greedy tasks do not depend on it")
    add("--step", type=int, help="checkpoint step (default: the newest)")
    options = parser.parse_args(arguments)
    given = {name for name in ("text", "image", "speech") if getattr(options, name) is not None}
    needed, allowed = PARTS[options.task]
    if not needed <= given <= needed | allowed or (options.task == "chat" and not given):
        wanted = " and ".join(f"--{name}" for name in sorted(needed)) or "any"
        wanted += f" of --{', --'.join(sorted(allowed))}" if allowed and not needed else ""
        parser.error(f"--task={options.task} takes {wanted}; got {', '.join(sorted(given)) or 'nothing'}")
    for name in given - {"text"}:
        if not Path(getattr(options, name)).is_file():
            parser.error(f"--{name}={getattr(options, name)} is not a file")
    return options


def request(options: argparse.Namespace) -> Document:
    """The Document that the command line describes."""
    return user_document(options.task, text=options.text, image=options.image, speech=options.speech)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    try:
        predictor = Predictor.load(options.checkpoint, options.step)
        answer = predictor.respond([request(options)], seeds=[options.seed])[0]
        record = answer.save(options.output, options.name or options.task, predictor.sample_rate)
    except FOR_PEOPLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if answer.text:
        print(answer.text)
    for name in record["files"]:
        print(f"wrote {options.output / name}")
    for problem in answer.problems:
        print(f"note: {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
