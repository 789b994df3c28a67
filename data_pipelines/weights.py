"""Loss weights as a table over token classes, so that reweighting needs no new tokenizing or packing.

One weight is by place instead: what answers have between the markers `<-Ins->` and `<-Res->`.
"""

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


def segment_factors(tokens: np.ndarray, segment_ids: np.ndarray, ins: int, res: int, weight: float) -> np.ndarray:
    """float32 [B, L]: `weight` for tokens after `<-Ins->` up to and with the next `<-Res->` of a document, 1 elsewhere.

    Chat checkpoints set off what has one right wording, such as the transcript before an answer, with these markers.
    A segment ends with its document too; a `<-Res->` alone begins nothing.

    Args:
      tokens, segment_ids: int32 [B, L] of packed rows. ins, res: ids of the markers.
    """
    first = np.ones(tokens.shape, bool)
    first[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    # Of the last turning point before a token: was it an <-Ins->? Starts of documents and <-Res-> close.
    place = np.arange(tokens.shape[1])
    opened = np.maximum.accumulate(np.where(tokens == ins, place, -1), axis=1)
    closed = np.maximum.accumulate(np.where((tokens == res) | (first & (tokens != ins)), place, -1), axis=1)
    after = np.zeros(tokens.shape, bool)
    after[:, 1:] = (opened > closed)[:, :-1] & ~first[:, 1:]
    return np.where(after, np.float32(weight), np.float32(1.0))
