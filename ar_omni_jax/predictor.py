"""A checkpoint ready to answer: model, tokenizers, templates and the decoding engine in one object."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ar_omni_jax import templates
from ar_omni_jax.answer_stream import AnswerStream, Piece
from ar_omni_jax.checkpoint import CheckpointError, load_for_inference
from ar_omni_jax.decoding.engine import Engine, GenerationError, Request
from ar_omni_jax.decoding.grammar import DEFAULT_BUDGETS, TASK_GRAMMARS, longest_answer
from ar_omni_jax.decoding.guidance import Guidance, GuidanceError
from ar_omni_jax.decoding.request import Plan, plan
from ar_omni_jax.decoding.strategy import StrategyError
from ar_omni_jax.documents import Document, DocumentError
from ar_omni_jax.history import fit_history
from ar_omni_jax.inference import Answer, Media, encode_read, read_media
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.tokenizers.bundle import Tokenizers, load_tokenizers
from ar_omni_jax.tokenizers.speech.streaming import StreamError
from ar_omni_jax.tokenizers.text import TokenizerError
from ar_omni_jax.vocabulary import Modality, VocabularyError

# What a person can mend when a checkpoint answers: commands tell it in one line. Anything else is a fault of the
# program and keeps its traceback.
FOR_PEOPLE = (
    CheckpointError,
    GenerationError,
    GuidanceError,
    StrategyError,
    StreamError,
    DocumentError,
    TokenizerError,
    VocabularyError,
    OSError,
)
MOST_ROWS = 16  # of an engine that is made for many documents
SHORTEST_CACHE = 256  # tokens; lengths are powers of two from here on, so that few programs are compiled


@dataclasses.dataclass
class _Running:
    """One request on its way: its answer so far, and when (seconds after it was handed in) what came."""

    stream: AnswerStream
    request: Request
    plan: Plan
    note: str
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: bool = False


@dataclasses.dataclass
class Predictor:
    """Answers documents. `root` resolves relative media paths; `step` is the checkpoint's training step.

    weights: type of the weights while decoding ("float32", "bfloat16", "int8"; None: the model's compute dtype).
    rows: requests that are decoded together, at least (None: as many as are asked, at most MOST_ROWS). capacity: tokens
    that each has room for, at least (None: as many as they need). Products of other sizes round otherwise, so an answer
    is the same to the bit, whatever is asked with it, where both are given and large enough. chunk: tokens between two
    looks. Tokenizers of modalities that no request needs are never loaded.
    """

    model: Transformer
    tokenizers: Tokenizers
    template: str
    step: int
    root: Path = Path(".")
    weights: str | None = None
    rows: int | None = None
    capacity: int | None = None
    chunk: int = 16
    _engine: Engine | None = dataclasses.field(default=None, init=False, repr=False)
    _places: dict[int, int] = dataclasses.field(default_factory=dict, init=False, repr=False)  # document -> request

    @classmethod
    def load(cls, checkpoint: str | Path, step: int | None = None, **options) -> Predictor:
        """Loads a training run's newest checkpoint (or `step`); `options` are fields of this class.

        Raises VocabularyError when the tokenizers at hand are not those that the checkpoint was trained with.
        """
        loaded = load_for_inference(checkpoint, step)
        tokenizers = load_tokenizers(loaded.config["data"]["tokenizers"], need=("text",))
        tokenizers.vocabulary.require_same(loaded.vocabulary.fingerprint, f"checkpoint {checkpoint}")
        model = nnx.eval_shape(lambda: Transformer(loaded.model_config, rngs=nnx.Rngs(0)))
        nnx.update(model, loaded.params)
        return cls(model, tokenizers, loaded.config["data"]["template"], loaded.step, **options)

    def untrained(self, seed: int = 0) -> Predictor:
        """The same shape with fresh random weights: the floor that training has to rise above."""
        return dataclasses.replace(self, model=Transformer(self.model.config, rngs=nnx.Rngs(seed)), step=0)

    @property
    def sample_rate(self) -> int:
        """Samples a second of generated speech."""
        return self.tokenizers.speech.sample_rate

    @property
    def engine_size(self) -> dict[str, int]:
        """`rows` and `capacity` of the engine at work; nothing before the first request."""
        return {} if self._engine is None else {"rows": self._engine.rows, "capacity": self._engine.capacity}

    def _engine_for(self, plans: Sequence[Plan]) -> Engine:
        """An engine with rows for these requests and guidance branches, and a cache as long as they need; made at
        first use, and anew when it is too small (every step reads the whole length, so it is not made too long)."""
        each = [1 + len(p.branches) for p in plans]
        rows = max(self.rows or min(MOST_ROWS, _power_of_two(sum(each))), max(each))
        needed = max(max(len(p.prompt), *map(len, p.branches), 0) + p.left for p in plans)
        longest = max(SHORTEST_CACHE, _power_of_two(needed), self.capacity or 0)
        longest = min(longest, self.model.config.max_length)
        if self._engine is None or self._engine.rows < rows or self._engine.capacity < longest:
            if self._engine is not None:
                rows, longest = max(rows, self._engine.rows), max(longest, self._engine.capacity)
            self._engine = None  # its memory is wanted
            self._engine = Engine(
                self.model,
                self.tokenizers.vocabulary,
                rows=rows,
                capacity=longest,
                chunk=self.chunk,
                weights=self.weights,
            )
        return self._engine

    def respond(self, documents: Sequence[Document], *, seeds: Sequence[int], errors: str = "raise", **options) -> list:
        """One answer a document (its own last answer, if any, is not shown to the model).

        A document's answer depends on its own prompt and seed alone, never on its neighbours. `options` as in
        `stream`.

        Args:
          errors: "raise" the first error once all others are answered, or "return" errors in their answers' places.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors={errors!r}: use 'raise' or 'return'")
        out: list[Answer | Exception] = [None] * len(documents)
        for piece in self.stream(documents, seeds=seeds, live=False, **options):
            if piece.answer is not None or piece.error is not None:
                out[piece.index] = piece.error or piece.answer
        failed = [x for x in out if isinstance(x, Exception)]
        if failed and errors == "raise":
            raise failed[0]
        return out

    def stream(
        self,
        documents: Sequence[Document],
        *,
        seeds: Sequence[int] | None = None,
        root: Path | None = None,
        budgets: Mapping[str, int] | None = None,
        strategies: Mapping | None = None,
        max_new_tokens: int | None = None,
        guidance: Guidance | None = None,
        live: bool = True,
        speech: Mapping | None = None,
    ) -> Iterator[Piece]:
        """Pieces of all answers as they come: text, samples and pictures; last of each an answer or an error.

        A request that cannot be answered gets its error; the others go on. Dialogues that are too long lose their
        oldest rounds, and their answer's notes say which.

        Args:
          documents: image and speech parts by path, file's bytes or array (`inference.read_media`).
          seeds: one a document (None: all 0). budgets: largest number of tokens of a text and a speech part.
          strategies, max_new_tokens, guidance: as in `decoding.engine.Request`, for all documents.
          live: False to decode sound and pictures once each answer is complete, and give no other pieces.
          speech: {"lookahead": codes, "left_context": codes, "step": codes} for codecs that are not causal.
        """
        seeds = [0] * len(documents) if seeds is None else list(seeds)
        if len(seeds) != len(documents):
            raise GenerationError(f"{len(documents)} documents and {len(seeds)} seeds: give one each")
        budgets = {**DEFAULT_BUDGETS, **(budgets or {})}
        options = dict(strategies=strategies, budgets=budgets, max_new_tokens=max_new_tokens, guidance=guidance)
        started = time.perf_counter()
        prepared = self._prepare(documents, seeds, root or self.root, options)
        ready = {"prepare": time.perf_counter() - started}
        running = []
        for i, item in enumerate(prepared):
            if isinstance(item, Exception):
                yield Piece(i, error=item)
            else:
                stream = AnswerStream(self.tokenizers, i, live=live, speech=speech)
                running.append(_Running(stream, *item, dict(ready)))
        if running:
            yield from self._run(self._engine_for([run.plan for run in running]), running, budgets)

    def stop(self, index: int) -> None:
        """Ends document `index` of the running stream, whether its answer has begun or not: its last piece is then an
        error. The others go on."""
        if self._engine is not None and index in self._places:
            self._engine.stop(self._places[index])

    def _prepare(self, documents, seeds, root, options: Mapping) -> list:
        """(request, plan, note) of each document, or what is wrong with it."""
        out: list[Any] = []
        for document, seed in zip(documents, seeds, strict=True):
            try:
                out.append(self._prepare_one(document, seed, root, options))
            except FOR_PEOPLE as error:
                out.append(error)
        return out

    def _prepare_one(self, document: Document, seed: int, root: Path, options: Mapping) -> tuple[Request, Plan, str]:
        asked = templates.without_answer(document)
        templates.render(asked, self.template)  # turns that do not fit the task, before anything is read
        media = self._that_fit(asked, read_media(asked, self.tokenizers, root))
        # Each document's by themselves: another number of them rounds otherwise, and could turn a code of this one.
        (codes,) = encode_read([media], self.tokenizers)
        prompt, note = self._prompt(asked, codes, options)
        request = Request(prompt=prompt, task=asked.task, seed=seed, id=asked.id, **options)
        longest = self.model.config.max_length
        return request, plan(request, f"document {asked.id!r}", self.tokenizers.vocabulary, longest), note

    def _that_fit(self, document: Document, media: Media) -> Media:
        """`media`, unless a sound is longer than the whole context: that is known before it is encoded."""
        for modality, samples in media:
            longest = self.model.config.max_length
            if modality == Modality.SPEECH and len(samples) > longest * self.tokenizers.speech.hop_length:
                raise DocumentError(
                    f"document {document.id!r}: {len(samples) / self.sample_rate:.1f} s of speech are more tokens than "
                    f"the {longest} of the model's context; cut it"
                )
        return media

    def _prompt(self, document: Document, codes: list, options: Mapping) -> tuple[np.ndarray, str]:
        """Prompt of a document whose history fits, and what was dropped to that end."""

        def prompt(d: Document) -> np.ndarray:
            left = codes[len(codes) - len(d.media()) :]
            return templates.prompt(d, self.template, self.tokenizers.vocabulary, self.tokenizers.text.encode, left)

        if document.task not in templates.CHAT_TASKS or len(document.turns) < 2:
            return prompt(document), ""
        length, wanted = self.model.config.max_length, options["max_new_tokens"]
        if wanted is None:
            wanted = longest_answer(TASK_GRAMMARS[document.task], self.tokenizers.vocabulary, options["budgets"])
            # Half of the context at most is kept free: history is worth more than an unlikely length.
            wanted = min(wanted, length // 2)
        room = length - wanted
        alone = room if options["max_new_tokens"] is not None else length - 2
        fitted = fit_history(document, lambda d: len(prompt(d)), room, largest=alone)
        return prompt(fitted.document), fitted.note()

    def _run(self, engine: Engine, running: list[_Running], budgets) -> Iterator[Piece]:
        """The engine's events as pieces."""
        started = time.perf_counter()
        self._places = {run.stream.index: k for k, run in enumerate(running)}
        with contextlib.closing(engine.stream([run.request for run in running])) as events:
            for event in events:
                run = running[event.index]
                if run.failed:
                    continue
                if len(event.tokens):
                    run.seconds.setdefault("first_token", time.perf_counter() - started)
                try:
                    if event.error is not None:
                        raise event.error
                    pieces = _heard(run, run.stream.push(event.tokens), started)
                    if event.done:
                        pieces += _finish(run, budgets, started)
                except FOR_PEOPLE as error:  # such as a speech model that is not there
                    run.failed, pieces = True, [Piece(run.stream.index, error=error)]
                    engine.stop(event.index)
                yield from pieces


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _heard(run: _Running, pieces: list[Piece], started: float) -> list[Piece]:
    """`pieces`; notes when the first sound came."""
    if any(piece.samples is not None for piece in pieces):
        run.seconds.setdefault("first_sound", time.perf_counter() - started)
    return pieces


def _finish(run: _Running, budgets: Mapping[str, int], started: float) -> list[Piece]:
    """The last pieces of a request, its whole answer among them."""
    pieces, answer = run.stream.finish(budgets)
    _heard(run, pieces, started)
    answer.notes += [run.note] if run.note else []
    answer.counts = {"prompt": len(run.request.prompt), **answer.counts}
    answer.seconds = {**run.seconds, "total": time.perf_counter() - started}
    return [*pieces, Piece(run.stream.index, answer=answer)]
