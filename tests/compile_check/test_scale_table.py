"""The table of docs/scale.md: which choice becomes the row, what is kept, what the page looks like after."""

import pytest

from ar_omni_jax.compile_check import cache, table
from ar_omni_jax.compile_check.targets import GIB, TARGETS, find_target


def result(fits: bool = True, remat: str = "full", batch: int = 64) -> dict:
    kinds = {"parameters": GIB, "moments": 2 * GIB, "temporaries": 5 * GIB, "total": 8 * GIB}
    return {
        "target": "v5p-64",
        "devices": 32,
        "fits": fits,
        "over_bytes": 0 if fits else 5,
        "limit_bytes": 16 * GIB,
        "headroom_bytes": GIB,
        "memory_bytes": kinds,
        "settings": {
            "data.length": 1300,
            "data.batch_size": batch,
            "model.remat": remat,
            "model.attention": "blocked",
            "optimizer.moment_dtype": "float32",
        },
        "collectives": {"all-gather": {"wire_bytes": 3.0 * GIB}, "all-reduce": {"wire_bytes": 1.0 * GIB}},
        "flops": {"formula": 100e12, "products": 130e12},
        "roofline": {"overlapped": 0.5, "serial": 0.75, "mfu_overlapped": 0.6, "mfu_serial": 0.4, "limit": "compute"},
        "seconds": 90.0,
        "versions": {"jax": "0.10.2"},
    }


@pytest.fixture
def compiler(monkeypatch):
    """Settings that were compiled; full recomputation fits and nothing else."""
    calls = []

    def check(spec, overrides, target, file):
        settings = dict(overrides)
        calls.append((target.name, spec, settings))
        if settings["model.remat"] == "save_attention":
            raise cache.CheckFailed("the compiler crashed")
        return result(settings["model.remat"] == "full", settings["model.remat"]), False

    monkeypatch.setattr(cache, "cached_check", check)
    monkeypatch.setattr(table, "prepare", lambda target: None)
    return calls


def test_the_first_choice_that_fits_is_the_row_and_a_crash_is_not_the_end(compiler, tmp_path, capsys):
    page = tmp_path / "scale.md"
    page.write_text(f"# Scale\nbefore\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert table.main(["--only=v5p-64", f"--cache={tmp_path / 'c'}", f"--output={page}"]) == 0
    tried = [(spec, settings["model.remat"]) for _, spec, settings in compiler]
    wanted = ["zero_recompute", "save_attention", "full"]
    assert tried == [(spec, remat) for spec in table.STAGES for remat in wanted]
    assert compiler[0][2]["data.batch_size"] == str(8 * 32)
    text = page.read_text()
    assert text.startswith("# Scale\nbefore\n") and text.endswith(f"{table.END}\nafter\n") and "old" not in text
    assert "| v5p-64 | 32 | 1300 | 8 | 64 | full | blocked | 3.00 | 5.00 | 8.00 of 15.00 | 4.0 | 100 / 130 |" in text
    assert "the compiler crashed" in capsys.readouterr().err


def test_two_slices_get_one_replica_each(compiler, tmp_path):
    table.main(["--only=2xv5p-64", f"--cache={tmp_path / 'c'}", f"--output={tmp_path / 'page.md'}"])
    assert compiler[0][2]["mesh.data"] == "2" and compiler[0][2]["data.batch_size"] == str(8 * 64)


def test_a_row_that_nothing_fits_is_missing_and_said(compiler, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(table.PLAN, "v5e-64", {length: (table.Choice("none", 1),) for length in (1300, 3456)})
    assert table.main(["--only=v5e-64", f"--cache={tmp_path / 'c'}", f"--output={tmp_path / 'page.md'}"]) == 1
    assert "not made: v5e-64 at 1300, v5e-64 at 3456" in capsys.readouterr().out


def test_unknown_names_are_refused(capsys):
    assert table.main(["--only=v5p-65"]) == 2
    assert "no plan for v5p-65" in capsys.readouterr().err
    assert table.main(["--only=,"]) == 2
    assert "no plan for nothing; there is one for v5p-64" in capsys.readouterr().err


def test_the_plan_has_every_target_that_was_promised_and_batches_that_fit_the_mesh():
    promised = {"v5e-64", "v5e-256", "v5p-8", "v5p-64", "v5p-128", "v6e-64", "v6e-256", "h200-1", "h200-8"}
    assert promised <= set(table.ORDER) <= set(table.PLAN) and "2xv5p-64" in table.ORDER
    for name in table.ORDER:
        for spec, length in table.STAGES.items():
            for choice in table.PLAN[name][length]:
                settings = dict(table.overrides(spec, choice, name))
                assert int(settings["data.batch_size"]) == choice.rows * find_target(name).devices
    assert promised <= set(TARGETS)
