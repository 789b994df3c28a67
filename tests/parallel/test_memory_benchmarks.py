"""The commands that measure memory: a row for a policy, and what is wrong with a target in one line."""

import jax
import pytest

from ar_omni_jax.benchmarks import context_memory, remat_memory


@pytest.mark.parametrize("command", [remat_memory, context_memory])
def test_unknown_targets(command, capsys):
    assert command.main(["--target=moon"]) == 2
    assert "no target 'moon'; the targets are v5e-4" in capsys.readouterr().out


def test_a_table_has_a_line_for_each_policy(monkeypatch):
    """Policies are measured and compared with the one that recomputes nothing, whatever their order."""
    made = {"none": (5, 9), "full": (1, 16), "save_attention": (3, 12), "zero_recompute": (4, 9)}

    def measured(config, devices, rows, length, **mesh):
        if config.remat == "none":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5.0G of 4.0G\nmore")
        gib, products = made[config.remat]
        return remat_memory.Measured(2**30, gib * 2**30, products, 2.0)

    monkeypatch.setattr(remat_memory, "measure", measured)
    lines = []
    found = remat_memory.table(remat_memory.chameleon_7b(), [], 1, 8, say=lines.append)
    assert set(found) == {"zero_recompute", "save_attention", "full"}
    assert lines[2] == "| zero_recompute | 1.00 | 4.00 | 0 | 2 |"
    assert "| none | RESOURCE_EXHAUSTED: 5.0G of 4.0G | | | |" in lines
    assert "| full | 1.00 | 1.00 | 7 | 2 |" in lines
