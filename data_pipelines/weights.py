"""Loss weights as a table over token classes, so that reweighting needs no new tokenizing or packing."""

from __future__ import annotations

import numpy as np

from ar_omni_jax.documents import NUM_TOKEN_CLASSES, Role, split_token_class, task_index
from ar_omni_jax.vocabulary import Modality

RESPONSE_TEXT_TASKS = ("asr", "caption")
RESPONSE_IMAGE_TASKS = ("t2i", "speech_to_image", "chat_image")


def weight_table(
    response_text_weight: float = 2.0, response_only: bool = False, response_image_weight: float = 1.0
) -> np.ndarray:
    """float32 [256]: loss weight of a target by its token class.

    Text of the response of X-to-text tasks gets `response_text_weight`, all else 1 (paper, weighted next-token
    loss). Markers are no text: `<eos>` stays at 1, as in the reference. `response_only`: prompts get 0 (stage 2).
    `response_image_weight` (1 in the paper) is that of image codes which answer text or speech.
    """
    weights = {"response_text_weight": response_text_weight, "response_image_weight": response_image_weight}
    for name, weight in weights.items():
        if weight < 0:
            raise ValueError(f"{name} = {weight} is negative; use 0 or more")
    task, role, modality = split_token_class(np.arange(NUM_TOKEN_CLASSES))

    def response(names, of):
        return np.isin(task, [task_index(name) for name in names]) & (role == Role.RESPONSE) & (modality == of)

    table = np.where(response(RESPONSE_TEXT_TASKS, Modality.TEXT), response_text_weight, 1.0)
    table = np.where(response(RESPONSE_IMAGE_TASKS, Modality.IMAGE), response_image_weight, table)
    if response_only:
        table = np.where(role == Role.RESPONSE, table, 0.0)
    return table.astype(np.float32)
