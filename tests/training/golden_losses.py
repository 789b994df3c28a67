"""The golden batch of the published trainer as this project's batch."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ar_omni_jax.documents import Role, task_index, token_class
from ar_omni_jax.vocabulary import IdRange, JointVocabulary, Modality

GOLDEN = Path(__file__).parent.parent / "golden"
TASK_NAMES = {"image_caption": "caption", "speech_to_text": "asr", "text_to_image": "t2i", "text_to_speech": "tts"}


def golden_vocabulary() -> JointVocabulary:
    """32 image codes from id 4, images of 32 x 32 codes; the other ranges are not used by the losses."""
    info = json.loads((GOLDEN / "losses.json").read_text())
    names = ("unk", "boa", "eoa", "eoh", "eom", "ins", "res", "bos")
    markers = {"pad": info["pad_id"], "eos": info["eos_id"], "boi": info["boi_id"], "eoi": info["eoi_id"]}
    markers |= {name: 42 + i for i, name in enumerate(names)}
    return JointVocabulary("golden", 64, IdRange(52, 12), IdRange(4, 32), IdRange(0, 1), markers, (32, 32))


def golden_batch(response_weight: float):
    """(batch of jax arrays, the file's arrays). The weighted positions are the file's own mask."""
    info = json.loads((GOLDEN / "losses.json").read_text())
    with np.load(GOLDEN / "losses.npz") as file:
        arrays = {name: file[name] for name in file.files}
    vocabulary = golden_vocabulary()
    tokens = arrays["input_ids"].astype(np.int32)
    mask = arrays["attention_mask"].astype(np.int32)
    shifted = lambda x: np.pad(x[:, 1:], ((0, 0), (0, 1)))  # noqa: E731
    task = np.array([task_index(TASK_NAMES[name]) for name in info["tasks"]])[:, None]
    classes = token_class(np.broadcast_to(task, tokens.shape), Role.RESPONSE, vocabulary.modality_table[tokens])
    weights = shifted(mask).astype(np.float32)
    weights[:, :-1][arrays["tail_mask_shifted"]] = response_weight
    batch = {
        "tokens": tokens,
        "targets": shifted(tokens),
        "loss_weights": weights,
        "target_class": shifted(np.where(mask > 0, classes, 0).astype(np.uint8)),
        "segment_ids": mask,
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
    }
    assert ((tokens == vocabulary.marker("boi")).sum() > 0) and Modality.IMAGE in vocabulary.modality_table[tokens]
    return {name: jnp.asarray(value) for name, value in batch.items()}, arrays
