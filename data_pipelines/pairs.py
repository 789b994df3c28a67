"""A text and one picture or utterance to one document: its task, its instruction, and whether its prompt is dropped.

Each is drawn by a hash of (seed, what is drawn, the record's id): a pure function of the record, so that order,
shards and workers change nothing, and another ratio of tasks changes as few records as possible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.vocabulary import Modality
from data_pipelines.sources.options import PAIR_TASKS, SourceOptions

GROUP = {Modality.IMAGE: "image", Modality.SPEECH: "speech"}

# Ways to ask for each task, beside the template's own sentence, which is drawn as often as each of these.
INSTRUCTIONS = {
    "caption": (
        "What does this picture show?",
        "Write a caption for the image.",
        "Say in words what you see here.",
        "Give a short description of this picture.",
        "Please put the content of the image into words.",
        "What is in the image?",
        "Tell me about this picture.",
    ),
    "t2i": (
        "Draw a picture of this:",
        "Make an image that shows the following:",
        "Paint what these words describe:",
        "I would like a picture of:",
        "Turn this description into an image:",
        "Please generate an image for this caption:",
        "Show me:",
    ),
    "asr": (
        "Write down what is said.",
        "What does the speaker say?",
        "Turn this recording into text.",
        "Please give me the transcript.",
        "Put the spoken words in writing.",
        "Which words do you hear?",
        "Take this down as dictation.",
    ),
    "tts": (
        "Read this aloud:",
        "Say the following:",
        "Speak these words:",
        "Please pronounce this sentence:",
        "Turn this text into a recording:",
        "Let me hear this:",
        "Give voice to this text:",
    ),
}
_DROPPING = ("caption", "t2i")  # guidance is of images: recognition and synthesis always keep their prompts


def pair_document(
    id: str,
    text: str,
    part: Part,
    options: SourceOptions,
    *,
    source: str,
    where: str,
    meta: Mapping[str, Any] | None = None,
) -> Document:
    """One record of a paired corpus -> its document.

    Args:
      id: the record's name, unique in the source. text: the caption or transcript, kept as it stands.
      part: the picture or utterance.
      source, where: the format's name; file and place, for messages.
    Raises DocumentError naming `where`: for empty text, or when `options.tasks` has none for this kind of media.
    """
    if not isinstance(text, str) or not text.strip():
        what = "caption" if part.modality == Modality.IMAGE else "transcript"
        raise DocumentError(f"{where}: record {id!r}: empty or missing {what} {text!r}; supply it or drop the record")
    task = choose_task(id, part.modality, options, where)
    ways = INSTRUCTIONS[task]
    number = int(_lot(options.seed, "instruction", id) * (len(ways) + 1)) if options.instructions else len(ways)
    asking = () if number == len(ways) else (Part(Modality.TEXT, ways[number]),)
    words = Part(Modality.TEXT, text)
    if task in ("caption", "asr"):
        user, answer = (part, *asking), words
    else:
        user, answer = (*asking, words), part
    dropped = prompt_dropped(task, id, options)
    turns = (Turn("user", user), Turn("assistant", (answer,)))
    return Document(id, task, GROUP[part.modality], turns, source, dict(meta or {}), prompt_dropped=dropped)


def choose_task(id: str, modality: Modality, options: SourceOptions, where: str = "") -> str:
    """The task of the pair called `id`, in the ratio of the weights in `options` for this kind of media."""
    possible = PAIR_TASKS[modality]
    weights = [(task, weight) for task, weight in options.tasks if task in possible]
    if not options.tasks:
        weights = [(task, 1.0) for task in possible]
    if not weights:
        asked = ", ".join(task for task, _ in options.tasks)
        raise DocumentError(
            f"{where}: a pair of text and {modality.name.lower()} serves {' or '.join(possible)}, but --tasks has "
            f"only {asked}; name one of them"
        )
    weights.sort(key=lambda item: possible.index(item[0]))  # the order on the command line means nothing
    left = _lot(options.seed, "task", id) * sum(weight for _, weight in weights)
    for task, weight in weights:
        left -= weight
        if left < 0:
            return task
    return weights[-1][0]


def prompt_dropped(task: str, id: str, options: SourceOptions) -> bool:
    """Whether the document called `id` trains without its prompt's text, for classifier-free guidance of images."""
    return task in _DROPPING and _lot(options.seed, "dropout", id) < options.prompt_dropout


def _lot(seed: int, what: str, id: str) -> float:
    """A number in [0, 1), uniform over ids and independent for each `what`."""
    data = f"{seed}/{what}/{id}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 11) / 2**53
