"""How the next token is picked from its logits, and which part of which task is decoded how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ar_omni_jax.decoding.guidance import Guidance
from ar_omni_jax.vocabulary import JointVocabulary


class StrategyError(ValueError):
    """A decoding setting that cannot be used; the message names it."""


PENALTY_SCOPES = ("row", "answer", "part")
LEAST, MOST = 1e-6, 1e6  # of temperature and penalty: beyond them logits over- or underflow float32


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to pick a token among the legal ones.

    Attributes:
      greedy: the likeliest; temperature, top_k and top_p are then without effect.
      temperature: logits are divided by it before the cuts.
      top_k: only the k likeliest remain; 0 = all.
      top_p: of these, the smallest set that holds this much of the probability remains.
      min_p: of these, ids at least this likely compared to the likeliest remain; 0 = all.
      repetition_penalty: logits of ids that stand in the scope already are divided by it when positive and
        multiplied when negative; 1 = none.
      penalty_scope: "row" (prompt and answer), "answer", or "part" (the text, image or speech being made).
      guidance: classifier-free guidance; in effect in image parts only.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    penalty_scope: str = "row"
    guidance: Guidance | None = None

    def __post_init__(self):
        between = f"must be in [{LEAST:g}, {MOST:g}]"
        for name, good, rule in (
            ("temperature", LEAST <= self.temperature <= MOST, f"{between} (use greedy=True for the likeliest)"),
            ("top_k", self.top_k >= 0, "must be 0 (off) or positive"),
            ("top_p", 0 < self.top_p <= 1, "must be in (0, 1]"),
            ("min_p", 0 <= self.min_p < 1, "must be in [0, 1)"),
            ("repetition_penalty", LEAST <= self.repetition_penalty <= MOST, between),
            ("penalty_scope", self.penalty_scope in PENALTY_SCOPES, f"must be one of {', '.join(PENALTY_SCOPES)}"),
        ):
            if not good:
                raise StrategyError(f"Strategy.{name} = {getattr(self, name)!r}: {rule}")


GREEDY = Strategy(greedy=True)
PART_KINDS = ("text", "image", "speech")

# Where there is one right answer (transcripts, captions, read-out text) the likeliest token; elsewhere a sample.
# Keys: a part kind, or (task, part kind), which wins.
DEFAULT_STRATEGIES: dict[str | tuple[str, str], Strategy] = {
    "text": Strategy(temperature=0.8, top_p=0.95),
    "image": Strategy(temperature=1.0, top_p=0.96),
    "speech": GREEDY,
    ("asr", "text"): GREEDY,
    ("caption", "text"): GREEDY,
    ("chat_image", "text"): GREEDY,
}

# The reference implementation's settings (its penalty on greedy speech excepted, which harms it).
REFERENCE_STRATEGIES: dict[str | tuple[str, str], Strategy] = {
    **DEFAULT_STRATEGIES,
    "text": Strategy(temperature=1.2, top_p=0.96, repetition_penalty=1.2),
}


def strategy_for(strategies: Mapping | None, task: str, kind: str) -> Strategy:
    """The strategy of part `kind` in `task`: `strategies` over the defaults, (task, kind) over kind alone."""
    for table in (strategies or {}, DEFAULT_STRATEGIES):
        for key in ((task, kind), kind):
            if key in table:
                return table[key]
    raise StrategyError(f"no strategy for part {kind!r}; parts are {', '.join(PART_KINDS)}")


@dataclasses.dataclass(frozen=True)
class ModeSwitch:
    """The reference's decoding: one greedy-or-sample bit that four markers set; every id is legal.

    A declaration like the tasks of `decoding/grammar.py`, for those who want a published checkpoint's streams
    as its authors made them. Nothing sees to it that such an answer parses.

    Attributes:
      greedy_after, sample_after: markers that set and clear the bit.
      greedy_first: the bit before any of them.
      ends: markers that end the answer.
      greedy, sample: how tokens are picked while the bit is set, or not.
    """

    greedy_after: tuple[str, ...] = ("boa", "ins")
    sample_after: tuple[str, ...] = ("eoa", "res")
    greedy_first: bool = False
    ends: tuple[str, ...] = ("eos", "eom")
    greedy: Strategy = Strategy(greedy=True, repetition_penalty=1.2)
    sample: Strategy = Strategy(temperature=1.2, top_p=0.96, repetition_penalty=1.2)

    def greedy_for_next(self, tokens, vocabulary: JointVocabulary, default_greedy: bool) -> np.ndarray:
        """bool [n]: whether the token after tokens[i] is picked greedily. The definition, on the host.

        Args:
          tokens: int [n] joint ids, from the start of the stream.
          default_greedy: the bit before any of the markers has been seen.
        """
        greedy, out = default_greedy, []
        on = {vocabulary.marker(name) for name in self.greedy_after}
        off = {vocabulary.marker(name) for name in self.sample_after}
        for token in np.asarray(tokens).tolist():
            greedy = True if token in on else False if token in off else greedy
            out.append(greedy)
        return np.array(out, bool)
