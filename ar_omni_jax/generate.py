"""Asks a checkpoint and writes what it answers as text, PNG and WAV, with a JSON record beside.

python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=t2i --text="a large red circle at the top left"
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=tts --text="a small blue cross in the center"
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=asr --speech=question.wav
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=caption --image=picture.png
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=chat_image --speech=request.wav
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=chat --history=talk.jsonl --remember --text=Hello
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --requests=many.jsonl --output=answers

--stream writes the WAV file while speech is made; the file is a whole one at every moment. --stream=- writes raw
samples to standard output instead (signed 16-bit little-endian, mono), for a player:
  ... --task=tts --text="a red circle" --stream=- | aplay -f S16_LE -c 1 -r 16000
Text then goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from ar_omni_jax.answer_files import AnswerFiles
from ar_omni_jax.decoding.flags import add_strategy_flags, check_strategy_flags, guidance_of, strategies_of
from ar_omni_jax.decoding.grammar import TASK_GRAMMARS
from ar_omni_jax.decoding.strategy import strategy_for
from ar_omni_jax.documents import Document, DocumentError, document_from_json
from ar_omni_jax.history import read_history, turn_to_json
from ar_omni_jax.inference import user_document
from ar_omni_jax.predictor import FOR_PEOPLE, Predictor
from ar_omni_jax.templates import CHAT_TASKS

# Parts of a request, by task: (needed, allowed besides). A chat needs at least one part.
PARTS: dict[str, tuple[set[str], set[str]]] = {
    "t2i": ({"text"}, set()),
    "tts": ({"text"}, set()),
    "asr": ({"speech"}, set()),
    "caption": ({"image"}, set()),
    "speech_to_image": ({"speech"}, set()),
    "image_to_speech": ({"image"}, set()),
    "chat_speech": ({"speech"}, {"text"}),
    "chat_image": ({"speech"}, {"text"}),
    "chat": (set(), {"text", "image", "speech"}),
    "text": (set(), {"text"}),
}


LONGEST_NAME = 50  # characters of a file's name that come from a request's id; file systems take 255 bytes


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request: the base name of its files, what is asked (or why it cannot be), and its seed."""

    name: str
    document: Document | Exception
    seed: int


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
    add("--task", choices=sorted(PARTS), help="what to do")
    add("--text", help="the text of the request")
    add("--image", help="an image file (PNG, JPEG, WebP ...)")
    add("--speech", help="a sound file (WAV, FLAC ...)")
    add(
        "--requests",
        type=Path,
        help="many requests instead: a document of the manifest format a line, with its own "
        '"seed" if wanted; one that cannot be answered does not stop the others',
    )
    add(
        "--history",
        type=Path,
        help="a dialogue so far, JSON or JSONL; its oldest rounds are dropped when it is too "
        "long, and the answer says which",
    )
    add("--remember", action="store_true", help="append this round to --history (a missing file is begun)")
    add("--output", type=Path, default=Path("generated"), help="directory for the answers")
    add("--name", help="base name of the files (default: the task; with --requests each one's id)")
    add("--stream", nargs="?", const="file", choices=("file", "-"), help="give out sound and text while they are made")
    add("--seed", type=int, default=0, help="of what is sampled; greedy tasks do not depend on it")
    add("--step", type=int, help="checkpoint step (default: the newest)")
    _add_decoding_flags(parser)
    options = parser.parse_args(arguments)
    _check_request(parser, options)
    return options


def _add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    add_strategy_flags(group)
    add = group.add_argument
    add("--weights", choices=("float32", "bfloat16", "int8"), help="type of the weights (default: the model's own)")
    add("--max_text", type=int, help="largest number of tokens of a text part")
    add("--max_speech", type=int, help="largest number of codes of a speech part (40 a second)")
    add("--max_new_tokens", type=int, help="largest number of tokens of an answer")
    add("--chunk", type=int, help="tokens between two looks at an answer (default: 4 with --stream, 16 without)")
    add("--rows", type=int, help="answers made together, at least (default: as many as are asked)")
    add("--capacity", type=int, help="tokens that each has room for, at least (default: as many as they need)")
    add("--lookahead", type=int, help="codes that a streamed sample waits for, for speech codecs that are not causal")


def _check_request(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a usage error unless the flags belong together."""
    given = {name for name in ("text", "image", "speech") if getattr(options, name) is not None}
    for name in ("max_text", "max_speech", "max_new_tokens", "chunk", "rows", "capacity", "lookahead"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)} must be at least 1")
    check_strategy_flags(parser, options)
    if options.remember and options.history is None:
        parser.error("--remember needs --history=FILE, the file to append to")
    if options.requests is not None:
        for name in ("task", "name", "history", *sorted(given)):
            if getattr(options, name) is not None:
                parser.error(f"--{name} does not go with --requests, whose lines say it")
        if options.stream == "-":
            parser.error("--stream=- is the sound of one request; use --stream with --requests")
        return
    if options.task is None:
        parser.error("give --task (with its parts) or --requests")
    needed, allowed = PARTS[options.task]
    if not needed <= given <= needed | allowed or (options.task == "chat" and not given):
        wanted = " and ".join(f"--{name}" for name in sorted(needed)) or "any"
        wanted += f" of --{', --'.join(sorted(allowed))}" if allowed and not needed else ""
        parser.error(f"--task={options.task} takes {wanted}; got {', '.join(sorted(given)) or 'nothing'}")
    for name in given - {"text"}:
        if not Path(getattr(options, name)).is_file():
            parser.error(f"--{name}={getattr(options, name)} is not a file")
    if options.history is not None and options.task not in CHAT_TASKS:
        parser.error(f"--history is for {', '.join(CHAT_TASKS)}; --task={options.task} is one question and one answer")
    if options.history is not None and not options.remember and not options.history.is_file():
        parser.error(f"--history={options.history} is not a file (--remember begins a new one)")


def requests(options: argparse.Namespace) -> list[Ask]:
    """What the command line asks for."""
    if options.requests is not None:
        return read_requests(options.requests, options.seed)
    history = read_history(options.history) if options.history is not None and options.history.is_file() else ()
    if history and history[-1].role == "user":
        raise DocumentError(f"history {options.history} ends with a user's turn; the next one must be the assistant's")
    document = user_document(
        options.task, text=options.text, image=options.image, speech=options.speech, history=history
    )
    return [Ask(options.name or options.task, document, options.seed)]


def read_requests(path: Path, seed: int) -> list[Ask]:
    """One Ask a line of a JSONL file of documents; a bad line is an Ask whose document is the error."""
    asks, names, stems = [], set(), set()
    # Only "\n" ends a line (JSON may hold other separators), and bytes that are no UTF-8 spoil their own line alone.
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # some editors put a mark at the start
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        name, own_seed = f"line-{number}", seed
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise DocumentError(f"{where}: expected an object with id, task and turns")
            own_seed = record.get("seed", seed)
            if isinstance(own_seed, bool) or not isinstance(own_seed, int):
                raise DocumentError(f"{where}: seed {own_seed!r} is not an integer")
            document = document_from_json(record, where=where)
            name = re.sub(r"[^\w.-]+", "_", document.id).lstrip(".")[:LONGEST_NAME] or name
            numbered = re.fullmatch(r"(.+)-\d+", name)  # as the second picture or sound of an answer is called
            if name in names or name in stems or (numbered and numbered[1] in names):
                raise DocumentError(f"{where}: a second request would write to {name}.*; give it another id")
            names.add(name)
            stems |= {numbered[1]} if numbered else set()
        except (ValueError, RecursionError) as error:  # DocumentError, malformed and too deeply nested JSON
            known = isinstance(error, DocumentError)
            document = error if known else DocumentError(f"{where}: malformed JSON ({error})")
        asks.append(Ask(name, document, own_seed if isinstance(own_seed, int) else seed))
    if not asks:
        raise DocumentError(f"{path}: no requests; write one document a line")
    return asks


def describe(ask: Ask, options: argparse.Namespace, predictor: Predictor) -> dict:
    """What the record of an answer says of its request and of how it was decoded."""
    document, overrides = ask.document, strategies_of(options)
    kinds = TASK_GRAMMARS[document.task].parts
    used = {kind: dataclasses.asdict(strategy_for(overrides, document.task, kind)) for kind in kinds}
    return {
        "request": {"task": document.task, "turns": [turn_to_json(turn) for turn in document.turns]},
        "seed": ask.seed,
        "strategies": used,
        "guidance": {"text": options.text_guidance, "image": options.image_guidance},
        "checkpoint": str(options.checkpoint),
        "step": predictor.step,
        "weights": predictor.weights or str(predictor.model.config.dtype),
        "engine": predictor.engine_size,
    }


def answer(options: argparse.Namespace) -> int:
    """Asks, writes, prints; returns the exit code."""
    asks = requests(options)
    try:  # before minutes of work whose answers would have no place
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--output={options.output} cannot be made a directory ({error.strerror})") from error
    chunk = options.chunk or (4 if options.stream else 16)
    sizes = {"chunk": chunk, "rows": options.rows, "capacity": options.capacity}
    predictor = Predictor.load(options.checkpoint, options.step, weights=options.weights, **sizes)
    files = AnswerFiles(options.output, [ask.name for ask in asks], live=options.stream, predictor=predictor)
    good = [i for i, ask in enumerate(asks) if isinstance(ask.document, Document)]
    for i in sorted(set(range(len(asks))) - set(good)):
        files.fail(i, asks[i].document)
    budgets = {"text": options.max_text, "speech": options.max_speech}
    pieces = predictor.stream(
        [asks[i].document for i in good],
        seeds=[asks[i].seed for i in good],
        root=options.requests.parent if options.requests is not None else None,
        budgets={kind: n for kind, n in budgets.items() if n is not None},
        strategies=strategies_of(options),
        max_new_tokens=options.max_new_tokens,
        guidance=guidance_of(options),
        live=options.stream is not None,
        speech={"lookahead": options.lookahead} if options.lookahead else None,
    )
    try:
        with contextlib.closing(pieces):
            for piece in pieces:
                i = good[piece.index]
                if piece.error is not None:
                    files.fail(i, piece.error)
                elif piece.answer is not None:
                    files.finish(i, piece.answer, describe(asks[i], options, predictor))
                    if options.remember:
                        files.remember(i, options.history, asks[i].document.turns, piece.answer)
                else:
                    files.add(i, piece)
    except KeyboardInterrupt:
        files.stop()
        return 130
    finally:
        files.close()
    return 1 if files.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 when any request could not be answered."""
    options = parse_arguments(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps
    try:
        return answer(options)
    except FOR_PEOPLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there was anything to keep
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
