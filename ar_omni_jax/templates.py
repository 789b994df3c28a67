"""The one function from a Document to its token stream, for training, evaluation and serving alike.

Two template sets (data, not code): "paper" is Table 10 of the paper, "released" the strings of the published
checkpoints' reference code. A set says how a turn is written; `render` turns a document into `Segment`s, one for
each marker, literal, text part, image and utterance.

White space at the borders of segments. Every text segment is encoded on its own, so a segment's tokens never
depend on what follows, and the prompt of a document is a prefix of the document. In Table 10 a space before text
belongs to that text and a space beside a marker is typography: in the "paper" set each text segment is its
stripped text after one space, and `response_text` takes that space off again. The "released" set writes text as
it stands.

Rounds. A dialogue is rounds of a user turn and an assistant turn. Where a task has an instruction, the round
gets it; in a dialogue the instruction of a finished round follows from what was answered (picture: chat_image,
only text: chat_speech, speech: none), and that of an open last round from the document's task.

A user's own text. One-shot tasks with text as content (t2i, tts) take the last text part as content; a text
before it replaces the instruction. In the other one-shot tasks a text part replaces the instruction. In chats the
user's text stands as given, and no instruction is added. The task "chat" never adds one.

A dropped prompt (`Document.prompt_dropped`). Of each round's prompt `<bos>` and the media alone remain: what the
poorer branches of classifier-free guidance read.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ar_omni_jax.documents import Document, DocumentError, Part, Role, Span, TokenDocument, Turn, task_index
from ar_omni_jax.responses import BRACKETS, Response, parse_response, response_text
from ar_omni_jax.vocabulary import JointVocabulary, Modality

__all__ = [
    "CHAT_TASKS",
    "TEMPLATE_SETS",
    "Form",
    "Response",
    "Segment",
    "Slot",
    "TemplateSet",
    "parse_response",
    "prompt",
    "render",
    "response_text",
    "template_set",
    "tokenize",
    "without_answer",
]

CHAT_TASKS = ("chat_speech", "chat_image", "chat")


class Slot(enum.Enum):
    """What fills a place of a one-shot user turn. MEDIA is the turn's one image or utterance."""

    INSTRUCTION = "instruction"
    TEXT = "text"
    MEDIA = "media"


@dataclasses.dataclass(frozen=True)
class Form:
    """How one task writes a round.

    instruction: the fixed text, "" for none. user: literals and slots of a one-shot user turn, () for a chat,
    whose parts stand as given with the instruction last. takes: modality of the user's content, None for any.
    answer: modalities of a one-shot answer, None for any. assistant: the label that ends the prompt.
    """

    instruction: str
    user: tuple[str | Slot, ...] = ()
    takes: Modality | None = None
    answer: tuple[Modality, ...] | None = None
    assistant: str = "ASSISTANT:"
    end: str = "eos"


@dataclasses.dataclass(frozen=True)
class TemplateSet:
    """Strings of one convention. `lead` stands before every text segment; `bos_each_round` as in Table 10."""

    name: str
    lead: str
    user_label: str
    bos_each_round: bool
    forms: Mapping[str, Form]


@dataclasses.dataclass(frozen=True)
class Segment:
    """One piece of the stream. `value`: a marker's name (MARKER), a str (TEXT), or the media Part."""

    modality: Modality
    role: Role
    value: Any


_TEXT, _IMAGE, _SPEECH = (Modality.TEXT,), (Modality.IMAGE,), (Modality.SPEECH,)
_FIRST = (Slot.INSTRUCTION, Slot.MEDIA)
_LAST = (Slot.MEDIA, Slot.INSTRUCTION)
_CONTENT = (Slot.INSTRUCTION, Slot.TEXT)

_TO_PICTURE = "Transcribe the audio and generate an image for the transcript."
_PAPER = {
    "t2i": Form("Create an image for:", _CONTENT, Modality.TEXT, _IMAGE),
    "asr": Form("Transcribe the audio.", _FIRST, Modality.SPEECH, _TEXT),
    "tts": Form("Convert the text to speech:", _CONTENT, Modality.TEXT, _SPEECH),
    "caption": Form("Describe the image.", _FIRST, Modality.IMAGE, _TEXT),
    "chat_image": Form(_TO_PICTURE, end="eom"),
    "chat_speech": Form("Reply in text.", end="eom"),
    "chat": Form("", end="eom"),
    # Not in Table 10; written in its manner.
    "speech_to_image": Form("Create an image for the audio.", _FIRST, Modality.SPEECH, _IMAGE),
    "image_to_speech": Form("Describe the image in speech.", _FIRST, Modality.IMAGE, _SPEECH),
}

_INPUT = (Slot.INSTRUCTION, "This is input: ", Slot.TEXT)
_SPACED_INPUT = (Slot.INSTRUCTION, " This is input: ", Slot.TEXT)
_DRAW = "Create a picture that matches the essence of this text."
_RELEASED = {
    "t2i": Form(_DRAW, _SPACED_INPUT, Modality.TEXT, _IMAGE, assistant=" GPT:"),
    "asr": Form(
        "Can you please convert this speech into written text?",
        _FIRST,
        Modality.SPEECH,
        _TEXT,
        assistant="GPT:",
    ),
    "tts": Form("Convert this text into speech.", _INPUT, Modality.TEXT, _SPEECH, assistant="GPT:"),
    "caption": Form("Describe this image.", _LAST, Modality.IMAGE, _TEXT, assistant="GPT:"),
    "chat_image": Form(_TO_PICTURE, assistant="GPT:", end="eom"),
    "chat_speech": Form(
        "Please acknowledge the user's vocal input, create a textual response.", assistant="GPT:", end="eom"
    ),
    "chat": Form("", assistant="GPT:", end="eom"),
    # The reference has no strings for these two.
    "speech_to_image": Form(
        "Create a picture that matches this speech.", _FIRST, Modality.SPEECH, _IMAGE, assistant="GPT:"
    ),
    "image_to_speech": Form("Describe this image in speech.", _LAST, Modality.IMAGE, _SPEECH, assistant="GPT:"),
}

TEMPLATE_SETS: dict[str, TemplateSet] = {
    "paper": TemplateSet("paper", lead=" ", user_label="USER:", bos_each_round=True, forms=_PAPER),
    "released": TemplateSet("released", lead="", user_label="USER:", bos_each_round=False, forms=_RELEASED),
}


def template_set(template: str | TemplateSet) -> TemplateSet:
    """A set by name; DocumentError naming the known ones otherwise."""
    if isinstance(template, TemplateSet):
        return template
    if template not in TEMPLATE_SETS:
        raise DocumentError(f"unknown template set {template!r}; known: {', '.join(TEMPLATE_SETS)}")
    return TEMPLATE_SETS[template]


# -- documents without their answer ----------------------------------------------------------------------------
def without_answer(document: Document) -> Document:
    """The document as it stands when the model is to speak: its last assistant turn taken off, if it ends in one.

    In chats the task becomes the form of the round that is now open, so that `prompt` of the result is a
    prefix of `tokenize` of `document`.
    """
    if not document.turns or document.turns[-1].role != "assistant":
        return document
    task = document.task
    if task in ("chat_speech", "chat_image"):
        task = _answered_form(task, document.turns[-1])
    return dataclasses.replace(document, task=task, turns=document.turns[:-1])


def _answered_form(task: str, answer: Turn) -> str:
    """The form of a finished round of a dialogue, by what was answered."""
    kinds = {part.modality for part in answer.parts}
    if task == "chat" or Modality.SPEECH in kinds:
        return "chat"
    return "chat_image" if Modality.IMAGE in kinds else "chat_speech"


# -- Document -> segments ------------------------------------------------------------------------------------
def render(document: Document, template: str | TemplateSet) -> list[Segment]:
    """The document's stream in order, markers included; a document without its last answer ends at the label.

    Raises DocumentError, naming the document, when its turns do not fit its task.
    """
    return _Renderer(document, template_set(template)).segments()


class _Renderer:
    def __init__(self, document: Document, template: TemplateSet):
        task_index(document.task)
        self.document, self.template = document, template

    def fail(self, reason: str) -> DocumentError:
        return DocumentError(f"document {self.document.id!r} (task {self.document.task}): {reason}")

    def segments(self) -> list[Segment]:
        turns = self.document.turns
        if self.document.task == "text":
            return self._plain_text(turns)
        if not turns:
            raise self.fail("it has no turns; give at least the user's")
        out: list[Segment] = []
        for number, start in enumerate(range(0, len(turns), 2)):
            user, answer = turns[start], turns[start + 1] if start + 1 < len(turns) else None
            if user.role != "user" or (answer is not None and answer.role != "assistant"):
                raise self.fail("turns must alternate user, assistant, user, ...")
            if number == 0 or self.template.bos_each_round:
                out.append(_marker("bos", Role.PROMPT))
            out += self._round(user, answer)
        if self.document.task not in CHAT_TASKS and len(turns) > 2:
            raise self.fail(f"it has {len(turns)} turns, but the task is one question and one answer")
        return out

    def _plain_text(self, turns: Sequence[Turn]) -> list[Segment]:
        out = [_marker("bos", Role.PROMPT)]
        if not turns:
            return out
        parts = [part for turn in turns for part in turn.parts]
        if len(turns) > 1 or len(parts) != 1 or parts[0].modality != Modality.TEXT:
            raise self.fail("a text document is one turn with one text part")
        return [*out, self._text(parts[0].value, Role.RESPONSE), _marker("eos", Role.RESPONSE)]

    def _round(self, user: Turn, answer: Turn | None) -> list[Segment]:
        task = self.document.task
        if task in CHAT_TASKS and answer is not None:
            task = _answered_form(task, answer)
        form = self.template.forms[task]
        asked = self._one_shot(user, form) if form.user else self._chat(user, form)
        if self.document.prompt_dropped:
            out = [segment for segment in asked if segment.modality != Modality.TEXT]
        else:
            out = [self._text(self.template.user_label, Role.PROMPT), *asked, _marker("eoh", Role.PROMPT)]
            out.append(self._text(form.assistant, Role.PROMPT))
        if answer is None:
            return out
        kinds = tuple(part.modality for part in answer.parts)
        if form.answer is not None and kinds != form.answer:
            raise self.fail(f"the answer must be {_names(form.answer)}, not {_names(kinds)}")
        for part in answer.parts:
            out += self._part(part, Role.RESPONSE)
        return [*out, _marker(form.end, Role.RESPONSE)]

    def _chat(self, user: Turn, form: Form) -> list[Segment]:
        out = [segment for part in user.parts for segment in self._part(part, Role.PROMPT)]
        if form.instruction and all(part.modality != Modality.TEXT for part in user.parts):
            out.append(self._text(form.instruction, Role.PROMPT))
        return out

    def _one_shot(self, user: Turn, form: Form) -> list[Segment]:
        texts = [part.value for part in user.parts if part.modality == Modality.TEXT]
        media = [part for part in user.parts if part.modality != Modality.TEXT]
        content = texts.pop() if Slot.TEXT in form.user and texts else None
        found = (Modality.TEXT,) * (content is not None) + tuple(part.modality for part in media)
        if found != (form.takes,) or len(texts) > 1:
            raise self.fail(
                f"the user's turn must be one {form.takes.name.lower()} part and at most one text as instruction, "
                f"not {_names(tuple(part.modality for part in user.parts))}"
            )
        out: list[Segment] = []
        for item in form.user:
            if item is Slot.INSTRUCTION:
                out.append(self._text(texts[0] if texts else form.instruction, Role.PROMPT))
            elif item is Slot.TEXT:
                out.append(self._text(content, Role.PROMPT))
            elif item is Slot.MEDIA:
                out += self._part(media[0], Role.PROMPT)
            else:
                out.append(self._text(item, Role.PROMPT))
        return out

    def _part(self, part: Part, role: Role) -> list[Segment]:
        if part.modality == Modality.TEXT:
            return [self._text(part.value, role)]
        opening, closing = BRACKETS[part.modality]
        return [_marker(opening, role), Segment(part.modality, role, part), _marker(closing, role)]

    def _text(self, text: str, role: Role) -> Segment:
        if not isinstance(text, str) or not text.strip():
            raise self.fail(f"empty or non-string text {text!r}; drop the document or supply its text")
        if self.template.lead:
            text = self.template.lead + text.strip()
        return Segment(Modality.TEXT, role, text)


def _marker(name: str, role: Role) -> Segment:
    return Segment(Modality.MARKER, role, name)


def _names(kinds: Sequence[Modality]) -> str:
    return " + ".join(kind.name.lower() for kind in kinds) or "nothing"


# -- segments -> tokens --------------------------------------------------------------------------------------
def tokenize(
    document: Document,
    template: str | TemplateSet,
    vocabulary: JointVocabulary,
    encode_text: Callable[[str], np.ndarray],
    codes: Sequence[np.ndarray],
) -> TokenDocument:
    """Tokens and spans of a document.

    Args:
      encode_text: str -> int32 pieces, called once a text segment.
      codes: int32 codes of each image and utterance, in `document.media()` order.
    Raises DocumentError (names the document), VocabularyError for a code outside its range.
    """
    segments = render(document, template)
    expected = len(document.media())
    if len(codes) != expected:
        raise DocumentError(f"document {document.id!r}: {expected} images and utterances, but codes of {len(codes)}")
    ids, spans, at, media = [], [], 0, iter(codes)
    for segment in segments:
        piece = _segment_ids(segment, vocabulary, encode_text, media, document.id)
        if spans and (spans[-1].modality, spans[-1].role) == (segment.modality, segment.role):
            spans[-1] = dataclasses.replace(spans[-1], end=at + len(piece))
        else:
            spans.append(Span(segment.modality, segment.role, at, at + len(piece)))
        ids.append(piece)
        at += len(piece)
    tokens = np.concatenate(ids).astype(np.int32)
    return TokenDocument(document.id, document.task, document.group, tokens, tuple(spans), document.source)


def _segment_ids(segment, vocabulary, encode_text, media, document_id) -> np.ndarray:
    """Joint ids of one segment; takes the next codes from `media` for an image or utterance."""
    if segment.modality == Modality.MARKER:
        return np.array([vocabulary.marker(segment.value)], np.int32)
    if segment.modality == Modality.TEXT:
        return vocabulary.to_ids(Modality.TEXT, np.asarray(encode_text(segment.value), np.int32))
    codes = np.asarray(next(media)).reshape(-1)
    if segment.modality == Modality.IMAGE and len(codes) != vocabulary.image_length:
        raise DocumentError(
            f"document {document_id!r}: an image has {len(codes)} codes, the vocabulary's grid "
            f"{vocabulary.image_grid} needs {vocabulary.image_length}"
        )
    if not len(codes):
        raise DocumentError(f"document {document_id!r}: an utterance without any code; is the audio empty?")
    return vocabulary.to_ids(segment.modality, codes)


def prompt(
    document: Document,
    template: str | TemplateSet,
    vocabulary: JointVocabulary,
    encode_text: Callable[[str], np.ndarray],
    codes: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """int32 tokens up to where the model starts to write: a strict prefix of `tokenize` of the whole document.

    A last assistant turn is taken off first (`without_answer`); `codes` are those of the media that remain. A
    text document gives `<bos>` alone, or `<bos>` and the text to go on from when its turn is the user's.
    """
    question = without_answer(document)
    tokens = tokenize(question, template, vocabulary, encode_text, codes).tokens
    return tokens[:-1] if question.task == "text" and question.turns else tokens
