"""Classifier-free guidance with text and image prompts."""

from __future__ import annotations


def mix_guided(full, image_only, unconditional, *, text_scale: float, image_scale: float):
    """l = u + s_img (i - u) + s_txt (f - i), element-wise on logits [..., V].

    Args:
      full, image_only, unconditional: logits with the whole prompt, with its image alone, with neither.
      text_scale, image_scale: s_txt and s_img; 1 and 1 give `full` back. Without an input image `image_only`
        equals `unconditional`, and two branches are enough.
    """
    return unconditional + image_scale * (image_only - unconditional) + text_scale * (full - image_only)
