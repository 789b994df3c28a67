"""Whisper and CLIP as judges, with random weights and tiny sizes: equal to transformers called by hand."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from ar_omni_jax.evaluation.judges.embedders import Clip, load_embedder
from ar_omni_jax.evaluation.judges.picture_features import load_feature_extractor
from ar_omni_jax.evaluation.judges.plugins import JudgeError
from ar_omni_jax.evaluation.judges.recognizers import Whisper, load_recognizer

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
BYTES = [chr(k) for k in (*range(33, 127), *range(161, 173), *range(174, 256))] + [chr(256 + k) for k in range(68)]


def byte_tokenizer(kind, folder, special):
    """A tokenizer of single bytes."""
    vocabulary = {c: k for k, c in enumerate(dict.fromkeys([*BYTES, *(c + "</w>" for c in BYTES), *special]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    kind(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return kind.from_pretrained(folder)


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = byte_tokenizer(transformers.WhisperTokenizer, folder, ["<|endoftext|>"])
    extractor = transformers.WhisperFeatureExtractor(feature_size=8)
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_target_positions=24, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=1,
        suppress_tokens=[], begin_suppress_tokens=[], init_std=1.0,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    return folder


@functools.cache
def loaded(folder):
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    return processor, transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


def by_hand(folder, wave):
    processor, model = loaded(folder)
    features = processor.feature_extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    return processor.batch_decode(model.generate(features, do_sample=False), skip_special_tokens=True)[0].strip()


def test_whisper_hears_what_transformers_hears_alone_or_in_a_batch(whisper_folder):
    judge = load_recognizer(f"whisper:{whisper_folder}")
    rng = np.random.default_rng(0)
    waves = [(0.3 * rng.standard_normal(n)).astype(np.float32) for n in (4000, 16000, 40000)]
    heard = judge.transcribe_all(waves)
    assert heard == [by_hand(whisper_folder, wave) for wave in waves] and any(heard)
    assert judge.transcribe_all([]) == [] and judge.name.startswith("whisper:")


def test_long_speech_is_heard_in_windows(whisper_folder):
    judge = Whisper(str(whisper_folder), batch=1)
    wave = (0.3 * np.random.default_rng(1).standard_normal(31 * 16000)).astype(np.float32)
    parts = [by_hand(whisper_folder, part) for part in (wave[: 30 * 16000], wave[30 * 16000 :])]
    assert judge.transcribe_all([wave]) == [" ".join(filter(None, parts))]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = byte_tokenizer(transformers.CLIPTokenizer, folder, ["<|startoftext|>", "<|endoftext|>"])
    size = {"shortest_edge": 16}
    images = transformers.CLIPImageProcessor(size=size, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": end}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=8
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_embeds_as_transformers_does(clip_folder):
    judge = load_embedder(f"clip:{clip_folder}")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (h, w, 3), np.uint8) for h, w in ((20, 30), (16, 16))]
    texts = ["a dog", "a very long text that has more letters than the model has places"]
    processor = transformers.CLIPProcessor.from_pretrained(clip_folder)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    inputs = processor(
        text=texts, images=[Image.fromarray(p) for p in pictures], return_tensors="pt", padding=True, truncation=True,
        max_length=12,
    )  # fmt: skip
    with torch.inference_mode():
        out = model(**inputs)
    for mine, theirs in ((judge.embed_images(pictures), out.image_embeds), (judge.embed_texts(texts), out.text_embeds)):
        unit = mine / np.linalg.norm(mine, axis=1, keepdims=True)  # the model's own outputs are of length 1
        np.testing.assert_allclose(unit, theirs.numpy(), atol=1e-5)
    features = load_feature_extractor(f"clip:{clip_folder}").features(pictures)
    np.testing.assert_array_equal(features, judge.embed_images(pictures))


def test_what_cannot_be_loaded_is_told(tmp_path):
    for make in (lambda: Whisper(str(tmp_path / "none")), lambda: Clip(str(tmp_path / "none"))):
        with pytest.raises(JudgeError, match="cannot be loaded from .*give a folder that save_pretrained wrote"):
            make()
