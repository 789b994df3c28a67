"""Codes to sound while they come: `SpeechStream`, one interface for codecs of both kinds.

A causal codec carries a state from code to code, and its stream is offline decoding to float rounding. A codec
that looks at all of time (the published WavTokenizer: GroupNorm and attention over the utterance) has no such
state. Its stream is made of windows of codes at fixed places, however the codes are pushed:

    [ left context | step | lookahead ]
                     given  the first code of it is kept to fade into the next window's own version

Window k gives the samples of codes [k step, (k + 1) step). Where it ends, two windows have an opinion about the
same samples; over one code they are mixed by a raised cosine, which leaves neither a jump nor a kink. Each window
costs the same, so the whole costs (left_context + step + lookahead) / step times one offline pass and grows
linearly with the length. The difference from offline decoding is what the windows do not see:
`python -m ar_omni_jax.tokenizers.speech.stream_table` measures it.
"""

from __future__ import annotations

import numpy as np

from ar_omni_jax.tokenizers.speech.tokenizer import CHUNK, SpeechTokenizer

STEP, LOOKAHEAD, LEFT_CONTEXT = 8, 8, 48  # codes; at 40 a second: 0.2 s, 0.2 s, 1.2 s


class StreamError(ValueError):
    """A stream that is asked for what it cannot do; the message says what and what to do."""


class SpeechStream:
    """One utterance: push codes as they come, play what comes back, finish.

    Args:
      tokenizer: the codec.
      lookahead: codes after a sample's own window that must be there before it is given out; >= 1.
      left_context: codes before it that are decoded again, rounded up to a multiple of `step`.
      step: codes a window gives out.
    All three are for codecs that are not causal; a causal one gives each code's samples at once.
    """

    def __init__(
        self,
        tokenizer: SpeechTokenizer,
        *,
        lookahead: int = LOOKAHEAD,
        left_context: int = LEFT_CONTEXT,
        step: int = STEP,
    ):
        for name, value, least in (("lookahead", lookahead, 1), ("left_context", left_context, 0), ("step", step, 1)):
            if value < least:
                raise StreamError(f"SpeechStream: {name}={value} codes; it must be at least {least}")
        self._tokenizer = tokenizer
        if tokenizer.codec.config.causal:
            self._decoder = _Stateful(tokenizer)
        else:
            self._decoder = _Windowed(tokenizer, lookahead, -(-left_context // step) * step, step)
        self._finished = False

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self._tokenizer.sample_rate

    @property
    def first_codes(self) -> int:
        """Codes that must be there before the first sample comes."""
        return self._decoder.first_codes

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Next codes int [n >= 0] -> the samples that are settled now, float32 [m * hop], m >= 0."""
        if self._finished:
            raise StreamError("SpeechStream: codes after finish(); make a new stream for the next utterance")
        return self._decoder.push(self._tokenizer.checked_codes(codes))

    def finish(self) -> np.ndarray:
        """The rest, so that all samples together are hop_length times all codes. Nothing at a second call."""
        finished, self._finished = self._finished, True
        return np.zeros(0, np.float32) if finished else self._decoder.finish()

    def warm_up(self) -> None:
        """Compiles every program that a stream of any length may run (but for one shorter than `first_codes`)."""
        for size in self._decoder.sizes():
            if self._tokenizer.codec.config.causal:
                self._tokenizer.decode_stream(self._tokenizer.init_stream(), np.zeros(size, np.int32))
            else:
                self._tokenizer.decode(np.zeros(size, np.int32))


class _Stateful:
    """A causal codec: the tokenizer's own exact stream."""

    first_codes = 1

    def __init__(self, tokenizer: SpeechTokenizer):
        self.tokenizer, self.state = tokenizer, tokenizer.init_stream()

    def push(self, codes: np.ndarray) -> np.ndarray:
        self.state, samples = self.tokenizer.decode_stream(self.state, codes)
        return samples

    def finish(self) -> np.ndarray:
        return np.zeros(0, np.float32)

    def sizes(self) -> list[int]:
        return [1 << i for i in range(CHUNK.bit_length())]


class _Windowed:
    """Windows at fixed places. `total` codes came, the samples of `given` were given out."""

    def __init__(self, tokenizer: SpeechTokenizer, lookahead: int, left: int, step: int):
        self.tokenizer, self.lookahead, self.left, self.step = tokenizer, lookahead, left, step
        self.codes = np.zeros(0, np.int32)  # the last of all codes
        self.total = self.given = 0
        self.tail: np.ndarray | None = None  # the last window's samples of the code after those given
        hop = tokenizer.hop_length
        self.rise = (0.5 - 0.5 * np.cos(np.pi * (np.arange(hop) + 0.5) / hop)).astype(np.float32)

    @property
    def first_codes(self) -> int:
        return self.step + self.lookahead

    def sizes(self) -> list[int]:
        return list(range(self.first_codes, self.left + self.first_codes + 1, self.step))

    def push(self, codes: np.ndarray) -> np.ndarray:
        self.codes = np.concatenate([self.codes, codes])
        self.total += len(codes)
        pieces = [np.zeros(0, np.float32)]
        while self.total - self.given >= self.first_codes:
            end = self.given + self.first_codes
            pieces.append(self._window(max(0, self.given - self.left), end, self.given + self.step))
        self.codes = self.codes[-(self.left + self.first_codes) :]
        return np.concatenate(pieces)

    def finish(self) -> np.ndarray:
        if self.total == 0:
            return np.zeros(0, np.float32)
        begin = 0
        if self.given:  # a window of a size that was compiled already, ending where the codes end
            size = self.lookahead + self.step * ((self.total - self.lookahead) // self.step)
            begin = self.total - min(size, self.left + self.first_codes)
        return self._window(begin, self.total, self.total)

    def _window(self, begin: int, end: int, upto: int) -> np.ndarray:
        """Samples of codes [given, upto), from codes [begin, end) decoded together."""
        hop, first = self.tokenizer.hop_length, self.total - len(self.codes)
        samples = self.tokenizer.decode(self.codes[begin - first : end - first])
        out = samples[(self.given - begin) * hop : (upto - begin) * hop].copy()
        if self.tail is not None:
            out[:hop] += (1 - self.rise) * (self.tail - out[:hop])
        self.tail = samples[(upto - begin) * hop : (upto - begin + 1) * hop].copy() if end > upto else None
        self.given = upto
        return out
