"""The ablation's page of runs made by hand, what becomes of damaged ones, and where kept ones were made."""

import json

import pytest
from made_runs import write_metrics, write_run

from ar_omni_jax.ablation import page, results, runner
from ar_omni_jax.ablation.keep import keep
from ar_omni_jax.ablation.runner import AblationError
from ar_omni_jax.ablation.study import ABLATION


def test_the_page_has_every_variant_and_leaves_out_what_was_not_measured(tmp_path):
    (tmp_path / runner.PLAN_FILE).write_text(json.dumps({"limit": 3, "settings": ["--config.train.steps=2"]}))
    for variant, score in (("full", 0.75), ("no_swin", 0.5)):
        for seed in range(2):
            write_run(tmp_path, variant, seed, score)
    made = page.write_page(tmp_path)
    text, record = made.read_text(), json.loads((tmp_path / "ablation.json").read_text())
    assert record["variants"]["no_swin"]["differences"]["t2i"]["mean"] == -25
    # Held-out losses of both variants are 1.25 and 2.25, so that they differ by nothing.
    losses = record["variants"]["no_swin"]["loss_differences"]
    assert losses["text"] == {"mean": 0, "low": 0, "high": 0, "seeds": [0, 0]}
    assert "image" not in losses and "+0.000" in text
    for words in ("75.0", "-25.0", "1.750", "a &lt;red&gt; circle 0", "page/no_swin-0.png", "--config.train.steps=2"):
        assert words in text
    assert {(v["task"], v["says"]) for v in record["verdicts"]} == {("t2i", "agrees"), ("caption", "disagrees")}
    for words in ("1 go the other way here", "0.5488", "page/figure-2.png", "compare: no_perceptual, plain"):
        assert words in text
    assert "figure-3" not in text and record["jump"] is None
    assert sorted(p.name for p in (tmp_path / "page").iterdir()) == [
        *("figure-2.png", "full-0.png", "nll-image.png", "nll-speech.png", "nll-text.png", "no_swin-0.png"),
        "perceptual.png",
    ]
    write_run(tmp_path, "plain", 0, 0.5)
    (tmp_path / "runs" / "plain" / "seed-0.log").touch()  # somebody's own, no run
    page.write_page(tmp_path)
    assert (tmp_path / "page" / "figure-3.png").is_file()
    text = (tmp_path / "index.html").read_text()
    assert "too short to tell, they end before step 25" in text and "nothing jumped" not in text
    # Five records of thirty can be judged: that nothing jumped is said of those alone.
    for variant, seed in runner.finished_runs(tmp_path, ABLATION):
        write_metrics(runner.workdir(tmp_path, variant, seed), [1.0] * 30, held_out=[1.25])
    page.write_page(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "nothing jumped after step 25" in text and "<td>5</td>" in text
    assert "of these 4, 0.2" in " ".join(text.split())  # differences decided by chance


def test_a_page_tells_where_the_runs_were_made_wherever_it_is_written(tmp_path, monkeypatch):
    def write(folder, processor, load):
        here = {"devices": 1, "device": "cpu", "cores": 2, "processor": processor, "jax": "0.10.2", "load": load}
        monkeypatch.setattr(page, "machine", lambda: here)
        page.write_page(folder)
        machines = json.loads((folder / page.RECORD).read_text())["machines"]
        assert all(one["processor"] in (folder / "index.html").read_text() for one in machines)
        return [one["processor"] for one in machines]

    output, kept = tmp_path / "out", tmp_path / "kept"
    write_run(output, "full", 0, 0.75)
    (output / runner.PLAN_FILE).write_text(json.dumps({"limit": 3, "settings": []}))
    assert write(output, "first processor", 0.5) == ["first processor"]
    keep(output, ABLATION, kept)
    assert write(kept, "second processor", 0.5) == ["first processor"]  # which only writes the page again
    write_run(kept, "plain", 0, 0.5)
    assert write(kept, "second processor", 0.5) == ["first processor", "second processor"]
    write_run(kept, "full", 1, 0.5)
    assert write(kept, "first processor", 9.0) == ["first processor", "second processor"]
    record = json.loads((output / page.RECORD).read_text())
    older = {"machine": record["machines"][0], "variants": record["variants"]}  # as the first pages had it
    (output / page.RECORD).write_text(json.dumps(older))
    assert write(output, "second processor", 0.5) == ["first processor"]


@pytest.mark.parametrize(
    ("evaluation", "metrics"),
    [
        ('{"systems"', ""),
        ("[]", ""),
        ('{"systems": {"trained model": {"asr": {"examples": [{"edits": 1}]}}}}', ""),
        ('{"systems": {"trained model": {"t2i": {"examples": [{"attributes": "many"}]}}}}', ""),
        ('{"systems": {"trained model": {}}}', "[1]\n{}\n"),
        ('{"systems": {"trained model": {}}}', ""),
        (
            '{"systems": {"trained model": {}}}',
            '{"step": 2}\n{"step": 1, "kind": "validation"}\n{"step": 2, "kind": "val',
        ),
    ],
)
def test_damaged_runs_are_named(tmp_path, evaluation, metrics):
    with pytest.raises(AblationError, match="no finished run"):
        results.read_runs(tmp_path, ABLATION)
    folder = runner.workdir(tmp_path, "full", 0)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "evaluation.json").write_text(evaluation)
    (folder / "metrics.jsonl").write_text(metrics)
    with pytest.raises(AblationError, match="seed-0 is damaged .*remove it"):
        results.read_runs(tmp_path, ABLATION)


def test_runs_whose_last_lines_are_lost_are_not_compared(tmp_path):
    for variant, steps in (("full", 4), ("plain", 3)):
        write_run(tmp_path, variant, 0, 0.5, steps)
    with pytest.raises(AblationError, match="plain/seed-0/metrics.jsonl ends at step 3, others of these runs at 4"):
        results.read_runs(tmp_path, ABLATION)


def test_what_is_kept_beside_other_runs_leaves_them_and_their_machines(tmp_path):
    def fill(folder, processor, runs, score=0.5):
        folder.mkdir()
        (folder / runner.PLAN_FILE).write_text(json.dumps({"limit": 3, "settings": []}))
        for variant, seed in runs:
            write_run(folder, variant, seed, score)
        record = {"machines": [{"processor": processor, "load": 1.0}], "runs": {name: [seed] for name, seed in runs}}
        (folder / page.RECORD).write_text(json.dumps(record))

    fill(tmp_path / "kept", "first", [("full", 0), ("plain", 0)])
    fill(tmp_path / "out", "second", [("full", 0), ("no_swin", 1)])
    assert keep(tmp_path / "out", ABLATION, tmp_path / "kept") == 2
    record = json.loads((tmp_path / "kept" / page.RECORD).read_text())
    assert [one["processor"] for one in record["machines"]] == ["first", "second"]
    assert record["runs"] == {"full": [0], "plain": [0], "no_swin": [1]}
    assert runner.finished_runs(tmp_path / "kept", ABLATION) == [("full", 0), ("no_swin", 1), ("plain", 0)]
    another = runner.workdir(tmp_path / "out", "full", 0)
    write_metrics(another, [1.0] * 2, held_out=[1.5])
    with pytest.raises(AblationError, match="full/seed-0: another run of this name stands there"):
        keep(tmp_path / "out", ABLATION, tmp_path / "kept")
    assert '"nll/text": 1.25' in (runner.workdir(tmp_path / "kept", "full", 0) / "metrics.jsonl").read_text()
