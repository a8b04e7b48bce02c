"""Tasks of lm-evaluation-harness on the demo's world: see docs/lm_eval.md."""
