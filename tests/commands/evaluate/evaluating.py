"""`eval` on the demo model, with few queries and short answers."""

from __future__ import annotations

from pathlib import Path

from alignez_bake.commands.evaluate import evaluate
from alignez_bake.evaluation.judge_kinds import JudgeOptions

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples" / "demo"
JUDGE = f"{ROOT / 'examples' / 'judge_demo.py'}:judge"
QUERIES = 40
FEW = 6
SETTINGS = {"max_new_tokens": 40, "batch_size": 40, "tuned": DEMO / "tuned"}


def evaluated(made, aligned="aligned", judge=JUDGE, **settings):
    asked = {**SETTINGS, "neutral": made / "neutral.txt", **settings}
    return evaluate(DEMO / "base", made / aligned, made / "heldout.jsonl", judge=judge, **asked)


def few(made, **settings):
    """Quickly: few queries, each model with its few answers."""
    asked = {**SETTINGS, "neutral": made / "few_neutral.txt", "judge": JUDGE, **settings}
    return evaluate(DEMO / "base", made / "aligned", made / "few_heldout.jsonl", **asked)


def options(**judge):
    return JudgeOptions(**{"model": "judge", "tries": 3, **judge})
