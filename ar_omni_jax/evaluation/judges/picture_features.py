"""What a Fréchet distance is taken between: clean-fid's Inception features (that is FID), or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ar_omni_jax.evaluation.judges.embedders import Clip
from ar_omni_jax.evaluation.judges.plugins import JudgeError, make_judge

MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")


class FeatureExtractor(Protocol):
    """Pictures to features. `name` stands in the results, and a run under another name is another run."""

    name: str

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float [N, D] of pictures uint8 [H, W, 3], of any sizes."""
        ...


class CleanFid:
    """clean-fid's Inception-v3 behind its resizing filter; clean-fid fetches the weights at first use.

    Args: mode: "clean" (antialiased), "legacy_pytorch" or "legacy_tensorflow"; figures of two modes are not comparable.
    Raises JudgeError for another mode, when clean-fid is not installed, or its weights cannot be fetched.
    """

    def __init__(self, mode: str = "clean"):
        if mode not in MODES:
            raise JudgeError(f"--fid=cleanfid:{mode}: clean-fid has the modes {', '.join(MODES)}")
        try:
            import torch
            from cleanfid.features import build_feature_extractor
            from cleanfid.resize import build_resizer
        except ImportError as error:
            raise JudgeError(f"FID needs clean-fid ({error}): pip install 'ar_omni_jax[fid]'") from error
        self.name = f"cleanfid:{mode}"
        self._torch, self._resize = torch, build_resizer(mode)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._model = build_feature_extractor(mode, self._device, use_dataparallel=False)
        except Exception as error:  # whatever its download, or PyTorch while it reads the file, raises
            raise JudgeError(f"clean-fid's Inception weights cannot be had ({error}); is there a network?") from error

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See `FeatureExtractor`; float32 [N, 2048]."""
        out = []
        for image in images:  # one at a time: legacy_tensorflow resizes inside the network, so sizes may differ
            pixels = np.asarray(self._resize(image), np.float32).transpose(2, 0, 1)
            with self._torch.inference_mode():
                row = self._model(self._torch.from_numpy(pixels.copy())[None].to(self._device))
            out.append(row.cpu().numpy()[0])
        return np.stack(out)


class ClipFeatures:
    """CLIP's picture embeddings: a Fréchet distance that is not FID, and that clean-fid is not needed for."""

    def __init__(self, where: str):
        self._clip = Clip(where) if where else Clip()
        self.name = self._clip.name

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See `FeatureExtractor`."""
        return self._clip.embed_images(images)


def load_feature_extractor(name: str) -> FeatureExtractor:
    """ "cleanfid", "cleanfid:MODE", "clip:FOLDER_OR_HUB_ID", or "MODULE:FACTORY". Raises JudgeError."""
    known = {"cleanfid": lambda mode: CleanFid(mode or "clean"), "clip": ClipFeatures}
    return make_judge("--fid", name, known, ("name", "features"))
