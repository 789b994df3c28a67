"""The paper's ablation on the toy world: many runs, one page."""
