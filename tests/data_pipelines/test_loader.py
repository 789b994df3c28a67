"""Loader: one order for all hosts and workers, resuming at any step, stop rules, batches and weights exact."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus import VOCABULARY, make_documents, write_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.documents import GROUPS, Role, Span, TokenDocument, split_token_class, task_index, token_class
from ar_omni_jax.vocabulary import Modality, VocabularyError, compact_vocabulary
from data_pipelines import schema, shards
from data_pipelines.dataset_info import read_info, write_info
from data_pipelines.loader import PackedSource, assemble_batch, make_loader, weight_table
from data_pipelines.mixture import DEFAULT_MIXTURE, MixtureError, integer_weights, training_order
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.packing import fill_row
from data_pipelines.permutation import TABLE_LIMIT, Permutation
from data_pipelines.schema import SchemaError

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = {
    "tokens": np.int32,
    "targets": np.int32,
    "loss_weights": np.float32,
    "target_class": np.uint8,
    "segment_ids": np.int32,
    "positions": np.int32,
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    write_documents(root / "in", {"train": make_documents(250), "validation": make_documents(40, seed=1)})
    pack(root / "in", root / "out", PackOptions(512, unit_tokens=20_000))
    return root / "out"


def batches(packed, count=None, split="train", global_batch=8, seed=3, data=None, **kwargs):
    data = {"path": packed, "stop": "repeat"} | (data or {})
    with make_loader(data, split=split, global_batch=global_batch, seed=seed, **kwargs) as loader:
        return [next(loader) for _ in range(count)] if count else list(loader)


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert set(x) == set(y) == set(KEYS)
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


@pytest.mark.parametrize(
    ("hosts", "workers"),
    [(2, 0), (4, 0)] + [pytest.param(hosts, 2, marks=pytest.mark.slow) for hosts in (1, 2, 4)],
)
def test_global_batches_do_not_depend_on_hosts_and_workers(packed, hosts, workers):
    want = batches(packed, 5)
    share = 8 // hosts
    for host in range(hosts):
        got = batches(packed, 5, process_index=host, process_count=hosts, workers=workers)
        assert_same(got, [{k: v[host * share : (host + 1) * share] for k, v in b.items()} for b in want])


@pytest.mark.parametrize("start", [1, 7, 40])
def test_resume_at_any_step_and_other_hosts(packed, start):
    want = batches(packed, start + 3)[start:]
    assert_same(batches(packed, 3, start_step=start), want)
    got = batches(packed, 3, start_step=start, process_index=1, process_count=2)
    assert_same(got, [{k: v[4:] for k, v in b.items()} for b in want])


@pytest.mark.slow
def test_a_run_goes_on_with_other_hosts_and_workers(packed):
    want, got = batches(packed, 9), []
    for hosts, workers, steps in [(1, 0, 1), (4, 0, 2), (2, 2, 2), (1, 2, 3), (2, 0, 1)]:
        place = {"start_step": len(got), "process_count": hosts, "workers": workers}
        parts = [batches(packed, steps, process_index=host, **place) for host in range(hosts)]
        got += [{k: np.concatenate([p[k] for p in step]) for k in KEYS} for step in zip(*parts, strict=True)]
    assert_same(got, want)


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_all_hosts_stop_at_the_same_step(packed, stop, hosts):
    data = {"stop": stop}
    want = batches(packed, data=data, threads=1)
    parts = [batches(packed, data=data, process_index=host, process_count=hosts) for host in range(hosts)]
    assert_same([{k: np.concatenate([p[k] for p in s]) for k in KEYS} for s in zip(*parts, strict=True)], want)
    share = 8 // hosts
    rest = batches(packed, data=data, process_index=1, process_count=hosts, start_step=len(want) - 2)
    assert_same(rest, [{k: v[share : 2 * share] for k, v in b.items()} for b in want[-2:]])


def test_step_is_the_state_and_far_steps_cost_nothing(packed):
    data = {"path": packed, "stop": "repeat"}
    with make_loader(data, split="train", global_batch=8, seed=3, start_step=10**9) as loader:
        assert loader.step == 10**9
        next(loader)
        assert loader.step == 10**9 + 1
        loader.close()
        with pytest.raises(StopIteration):
            next(loader)


def test_seeds_and_epochs_give_other_orders(packed):
    rows = read_info(packed).splits["train"]["rows"]
    one, other = batches(packed, 5, seed=3), batches(packed, 5, seed=4)
    assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(one, other, strict=True))
    order = training_order(rows, DEFAULT_MIXTURE, 0, "repeat")
    groups, drawn = order(np.arange(4000))
    speech = drawn[groups == GROUPS.index("speech")]
    n = rows["speech"]
    first, second = speech[:n], speech[n : 2 * n]
    assert sorted(first) == sorted(second) == list(range(n)) and (first != second).any()


def test_batches_are_exact(packed):
    source = PackedSource(packed, "train", read_info(packed))
    for batch in batches(packed, 4):
        for name, dtype in KEYS.items():
            assert batch[name].shape == (8, 512) and batch[name].dtype == dtype, name
        for b in range(8):
            for t in range(512):
                segment = batch["segment_ids"][b, t]
                if t + 1 < 512 and segment and batch["segment_ids"][b, t + 1] == segment:
                    assert batch["targets"][b, t] == batch["tokens"][b, t + 1]
                    assert batch["positions"][b, t + 1] == batch["positions"][b, t] + 1
                    task, role, modality = split_token_class(int(batch["target_class"][b, t]))
                    heavy = task in (task_index("asr"), task_index("caption")) and role and modality == Modality.TEXT
                    assert batch["loss_weights"][b, t] == (2 if heavy else 1)
                    assert VOCABULARY.modality_table[batch["targets"][b, t]] == modality
                else:
                    assert batch["loss_weights"][b, t] == 0 and batch["target_class"][b, t] == 0
    source.close()


def test_response_only_leaves_prompts_out(packed):
    for batch in batches(packed, 3, data={"response_only": True, "response_text_weight": 3.0}):
        role = split_token_class(batch["target_class"])[1]
        assert (batch["loss_weights"][role == Role.PROMPT] == 0).all()
        assert set(np.unique(batch["loss_weights"])) == {0, 1, 3}


def test_weight_table():
    table, stage2 = weight_table(), weight_table(response_only=True)
    cases = [("asr", Role.RESPONSE, Modality.TEXT, 2, 2), ("caption", Role.RESPONSE, Modality.TEXT, 2, 2)]
    cases += [("asr", Role.PROMPT, Modality.TEXT, 1, 0), ("asr", Role.RESPONSE, Modality.MARKER, 1, 1)]
    cases += [("tts", Role.RESPONSE, Modality.SPEECH, 1, 1), ("chat", Role.RESPONSE, Modality.TEXT, 1, 1)]
    for task, role, modality, weight, second in cases:
        index = token_class(task_index(task), role, modality)
        assert (table[index], stage2[index]) == (weight, second), (task, role, modality)
    assert table.shape == (256,) and table.dtype == np.float32 and table.sum() == 258
    with pytest.raises(ValueError, match="negative"):
        weight_table(-1)
    with pytest.raises(ValueError, match="response_image_weight = -2 is negative"):
        weight_table(response_image_weight=-2)


def test_pictures_that_answer_can_weigh_more():
    plain, table = weight_table(), weight_table(response_image_weight=4.0)
    raised = {
        int(token_class(task_index(task), Role.RESPONSE, Modality.IMAGE))
        for task in ("t2i", "speech_to_image", "chat_image")
    }
    changed = set(np.flatnonzero(table != plain).tolist())
    assert changed == raised and all(table[list(raised)] == 4.0)
    assert (weight_table(response_image_weight=4.0, response_only=True)[list(raised)] == 4.0).all()


def golden_documents():
    """The golden batch as documents: response text, other text and `<eos>` in spans of their own."""
    meta, data = json.loads((GOLDEN / "losses.json").read_text()), np.load(GOLDEN / "losses.npz")
    names = {"image_caption": "caption", "speech_to_text": "asr", "text_to_image": "t2i", "text_to_speech": "tts"}
    docs = []
    for i, task in enumerate(meta["tasks"]):
        n, response = int(data["attention_mask"][i].sum()), int(data["response_lens"][i])
        tokens = data["input_ids"][i, :n].astype(np.int32)
        end = n - int(tokens[-1] == meta["eos_id"])
        given = Modality.TEXT if task in meta["weighted_tasks"] else Modality.IMAGE
        spans = [Span(Modality.TEXT, Role.PROMPT, 0, end - response), Span(given, Role.RESPONSE, end - response, end)]
        spans += [Span(Modality.MARKER, Role.RESPONSE, end, n)] * (end < n)
        docs.append(TokenDocument(str(i), names[task], "image", tokens, tuple(spans)))
    return meta, data, docs


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.5])
def test_weights_and_loss_equal_the_reference(weight):
    meta, data, docs = golden_documents()
    length = data["input_ids"].shape[1]
    rows = [fill_row([d.tokens], [d.classes()], length, meta["pad_id"]) for d in docs]
    records = [schema.encode_packed(row, 2) for row in rows]
    batch = assemble_batch(schema.decode_packed_batch(records, length), weight_table(weight), meta["pad_id"])
    np.testing.assert_array_equal(batch["tokens"], data["input_ids"])
    marked = data["tail_mask_shifted"]
    assert marked.sum() == sum(data["response_lens"][i] for i in range(2))
    if weight != 1:
        np.testing.assert_array_equal(batch["loss_weights"][:, :-1] == weight, marked)
    logits = data["logits"].astype(np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    loss = (batch["loss_weights"] * nll).sum() / batch["loss_weights"].sum()
    assert loss == pytest.approx(meta["total_loss"][f"seg{weight}_perc0.0"], abs=1e-5)


# -- mixture -----------------------------------------------------------------------------------------------
SIZES = st.fixed_dictionaries({g: st.integers(1, 60) for g in GROUPS})
WEIGHTS = st.fixed_dictionaries({g: st.sampled_from([0, 0.3, 0.5, 1, 2, 7.25]) for g in GROUPS})


@settings(max_examples=60, deadline=None)
@given(SIZES, WEIGHTS.filter(lambda w: any(w.values())), st.integers(0, 5))
def test_stop_rules(sizes, mixture, seed):
    active = [g for g in GROUPS if mixture[g]]
    order = training_order(sizes, mixture, seed, "first_exhausted")
    drawn = Counter(zip(*(a.tolist() for a in order(np.arange(order.length))), strict=True))
    assert set(drawn.values()) <= {1}
    per_group = Counter(g for g, _ in drawn)
    assert any(per_group[GROUPS.index(g)] == sizes[g] for g in active), "ended before any group was exhausted"
    order = training_order(sizes, mixture, seed, "all_exhausted")
    groups, rows = order(np.arange(order.length))
    assert len(set(zip(groups.tolist(), rows.tolist(), strict=True))) == sum(sizes[g] for g in active)
    groups, rows = order(np.arange(order.length - 1))
    assert len(set(zip(groups.tolist(), rows.tolist(), strict=True))) == sum(sizes[g] for g in active) - 1
    share = np.array([mixture[g] for g in active]) / sum(mixture.values())
    counts = training_order(sizes, mixture, seed, "repeat").drawn(np.arange(500))
    assert np.abs(counts - share[:, None] * np.arange(500)).max() < len(active)


def test_default_mixture_is_half_one_two():
    assert integer_weights([0.5, 1.0, 2.0]) == [1, 2, 4]
    order = training_order({"text": 9, "image": 9, "speech": 9}, DEFAULT_MIXTURE, 0, "repeat")
    groups, _ = order(10**11 + np.arange(700))
    assert Counter(groups.tolist()) == {0: 100, 1: 200, 2: 400}
    assert sum(integer_weights([1 / 3, 2 / 7, 1e-5])) <= 1 << 20


def test_bad_mixtures_say_what_to_do(packed, tmp_path):
    sizes = {"text": 5, "image": 0, "speech": 5}
    with pytest.raises(MixtureError, match=r"here: no rows of group image .*--config.data.mixture.image=0"):
        training_order(sizes, DEFAULT_MIXTURE, 0, "repeat", "here")
    assert training_order(sizes, DEFAULT_MIXTURE | {"image": 0}, 0, "repeat").groups == (0, 2)
    for mixture, message in [({"video": 1}, "unknown groups"), ({"text": -1}, "not negative"), ({}, "no weight above")]:
        with pytest.raises(MixtureError, match=message):
            training_order(sizes, mixture, 0, "repeat")
    with pytest.raises(MixtureError, match="first_exhausted, all_exhausted, repeat"):
        training_order(sizes, {"text": 1}, 0, "never")


def test_first_exhausted_ends_the_loader_and_all_exhausted_misses_nothing(packed):
    source_rows = read_info(packed).splits["train"]["rows"]
    got = batches(packed, data={"stop": "first_exhausted"}, global_batch=4)
    order = training_order(source_rows, DEFAULT_MIXTURE, 3, "first_exhausted")
    assert len(got) == order.length // 4
    seen = {
        row.tobytes() for b in batches(packed, data={"stop": "all_exhausted"}, global_batch=4) for row in b["tokens"]
    }
    assert len(seen) == sum(source_rows.values())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(0, 99))
def test_permutation_is_one(n, seed):
    image = Permutation(n, seed, 1)(np.arange(n))
    assert sorted(image.tolist()) == list(range(n))
    np.testing.assert_array_equal(Permutation(n, seed, 1)(np.array([n - 1, 0])), image[[n - 1, 0]])


def test_permutation_of_many_needs_no_table():
    n = TABLE_LIMIT + 17
    some = Permutation(n, 5)(np.arange(2000))
    assert len(set(some.tolist())) == 2000 and some.min() >= 0 and some.max() < n
    assert abs(some.mean() / n - 0.5) < 0.05
    with pytest.raises(IndexError):
        Permutation(n, 5)([n])


# -- validation and errors ---------------------------------------------------------------------------------
@pytest.mark.parametrize("hosts", [1, 3])
def test_validation_is_one_pass_with_every_row_once(packed, hosts):
    entry = read_info(packed).splits["validation"]
    total = sum(entry["rows"].values())
    parts = [
        batches(packed, split="validation", global_batch=9, process_index=i, process_count=hosts) for i in range(hosts)
    ]
    assert {len(p) for p in parts} == {-(-total // 9)}
    rows = [row for p in parts for b in p for row in zip(b["tokens"], b["segment_ids"], b["loss_weights"], strict=True)]
    filled = [tokens.tobytes() for tokens, segments, _ in rows if segments.any()]
    assert len(filled) == len(set(filled)) == total
    assert all(not weights.any() and (tokens == 1).all() for tokens, segments, weights in rows if not segments.any())
    assert sum(int((segments > 0).sum()) for _, segments, _ in rows) == entry["tokens"]
    again = batches(packed, split="validation", global_batch=9, seed=99, process_index=0, process_count=hosts)
    assert_same(again, parts[0])


def test_wrong_data_is_refused_with_advice(packed, tmp_path):
    data = {"path": packed, "length": 512, "stop": "repeat"}

    def load(split="train", batch=4, **kwargs):
        changed = data | kwargs.pop("data", {})
        return make_loader(changed, split=split, global_batch=batch, seed=0, **kwargs)

    with pytest.raises(VocabularyError, match=f"{VOCABULARY.fingerprint}.*feedfeedfeedfeed"):
        load(vocabulary_fingerprint="feedfeedfeedfeed")
    with pytest.raises(SchemaError, match="rows of 512 tokens, the config says 1024"):
        load(data={"length": 1024})
    with pytest.raises(SchemaError, match="no split 'test'; it has"):
        load("test")
    with pytest.raises(SchemaError, match="do not make one batch of 4000; lower batch_size"):
        load(batch=4000, data={"stop": "first_exhausted"})
    with pytest.raises(ValueError, match="4 cannot be divided over 3 hosts"):
        load(process_count=3)
    with pytest.raises(ValueError, match="start_step 10000 is not in"):
        load(start_step=10_000, data={"stop": "first_exhausted"})


def test_damaged_or_foreign_shards_are_named_while_training(packed, tmp_path):
    info = read_info(packed)
    info.vocabulary = compact_vocabulary(8, 8, 8, (2, 2), multiple=8)
    for group in GROUPS:
        for path in shards.shard_paths(packed / "train", group):
            (tmp_path / "train").mkdir(exist_ok=True)
            (tmp_path / "train" / path.name).write_bytes(path.read_bytes())
    write_info(tmp_path, info)
    with pytest.raises(VocabularyError, match=r"\w+-0000\d-of-0000\d.arrayrecord: record \d+: id \d+"):
        batches(tmp_path, 1)
    path = next((tmp_path / "train").glob("text-*"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SchemaError, match=f"{path.name}: the shard is truncated"):
        batches(tmp_path, 1)
    path.unlink()
    with pytest.raises(SchemaError, match="text lacks shards|text shards hold"):
        batches(tmp_path, 1)
