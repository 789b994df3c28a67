"""Prompts for samples are cut out of held-out rows exactly where the model starts to write."""

import numpy as np
import tiny_data

from ar_omni_jax.samples import first_documents
from data_pipelines.loader import make_loader


def test_prompts_and_answers_make_up_the_document(tmp_path):
    packed = tiny_data.make_packed(tmp_path, documents=8)
    with make_loader({"path": packed}, split="validation", global_batch=4, seed=0) as loader:
        batch = next(loader)
    found = first_documents(batch, ("caption", "asr", "t2i"))
    assert set(found) == {"caption", "asr"}
    originals = {
        task: [tiny_data.make_document(group, 1000 + n).tokens.tolist() for n in range(8)]
        for group, task in tiny_data.TASKS.items()
    }
    for task, (prompt, answer) in found.items():
        assert np.concatenate([prompt, answer]).tolist() in originals[task]
        assert len(prompt) == 6  # <bos>, four codes, <eoh>
        assert answer[-1] == tiny_data.VOCABULARY.marker("eos")
