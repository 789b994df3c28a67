"""Classifier-free guidance with text and image prompts: settings, branches, and the mixture of logits.

While an image is made, its row has one or two more branches that read the same codes after a poorer prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ar_omni_jax.vocabulary import JointVocabulary

LARGEST_SCALE = 1e6  # beyond it the mixture of logits may overflow float32


class GuidanceError(ValueError):
    """A guidance setting that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Scales and branches' prompts.

    Attributes:
      text_scale, image_scale: s_txt and s_img of `mix_guided`; 1 and 1 = no guidance.
      unconditional: ids of the branch without any prompt; None = <bos>, what remains of a prompt that training
        dropped.
      image_only: ids of the branch with the prompt's images alone; None = <bos> and the images of the prompt,
        or no such branch where there are none.
    """

    text_scale: float = 3.07
    image_scale: float = 1.15
    unconditional: Sequence[int] | None = None
    image_only: Sequence[int] | None = None

    def __post_init__(self):
        for name in ("unconditional", "image_only"):
            ids = getattr(self, name)
            if ids is not None:
                object.__setattr__(self, name, tuple(np.asarray(ids).tolist()))

    @property
    def active(self) -> bool:
        """Whether the scales change anything."""
        return self.text_scale != 1 or self.image_scale != 1

    def check(self) -> None:
        """GuidanceError when a scale is no number or far from any use, or a branch is empty."""
        for name in ("text_scale", "image_scale"):
            if not abs(getattr(self, name)) <= LARGEST_SCALE:
                raise GuidanceError(
                    f"Guidance.{name} = {getattr(self, name)!r}: must be a number from -{LARGEST_SCALE:g} to "
                    f"{LARGEST_SCALE:g}"
                )
        for name in ("unconditional", "image_only"):
            if getattr(self, name) == ():
                raise GuidanceError(f"Guidance.{name} is empty: give at least one id, or None")


def branches(guidance: Guidance, prompt: np.ndarray, vocabulary: JointVocabulary) -> list[np.ndarray]:
    """Prompts of the extra branches, int32: the unconditional one and, with an input image, the image-only one."""
    marker = vocabulary.marker
    bare = guidance.unconditional or (marker("bos"),)
    images = guidance.image_only
    if images is None:
        images = _images_of(np.asarray(prompt), marker("boi"), marker("eoi"))
        images = (marker("bos"), *images) if images else None
    return [np.array(ids, np.int32) for ids in (bare, images) if ids is not None]


def _images_of(prompt: np.ndarray, opener: int, closer: int) -> list[int]:
    """The whole images of a prompt, their markers included, one after the other."""
    found: list[int] = []
    begin = None
    for place, token in enumerate(prompt.tolist()):
        if token == opener:
            begin = place
        elif token == closer and begin is not None:
            found += prompt[begin : place + 1].tolist()
            begin = None
    return found


def mix_guided(full, image_only, unconditional, *, text_scale, image_scale):
    """l = u + s_img (i - u) + s_txt (f - i), element-wise on logits [..., V].

    Args:
      full, image_only, unconditional: logits with the whole prompt, with its image alone, with neither.
      text_scale, image_scale: s_txt and s_img; 1 and 1 give `full` back. Without an input image `image_only`
        equals `unconditional`, and two branches are enough.
    """
    return unconditional + image_scale * (image_only - unconditional) + text_scale * (full - image_only)
