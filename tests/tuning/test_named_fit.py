"""A method and strength that are given, in sight of the texts that the user wants left alone."""

import re
from functools import partial

import pytest

from alignez_bake import fit, pairs
from alignez_bake.edit_file import read_edits
from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.drift import kl_on_texts
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.tuning import named_fit

TEXTS = [f"The {thing} of a stone {place}." for thing in ("lid", "base", "door", "lamp") for place in ("hall", "yard")]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny_folder):
    """`fitted(method, neutral)`: edits of a tiny llama, and their plan's notes."""
    folder = tmp_path_factory.mktemp("named")
    base = tiny_folder("llama")
    (folder / "queries.txt").write_text("\n".join(f"pot {number}?" for number in range(12)))
    pairs(base, folder / "pairs.jsonl", queries=folder / "queries.txt", prompt_template="{query}")

    def fitted(method, texts):
        neutral = None if texts is None else folder / "neutral.txt"
        if neutral is not None:
            neutral.write_text("\n".join(texts) + "\n")
        out = folder / "edits.safetensors"
        fit(base, folder / "pairs.jsonl", out, method=method, neutral=neutral, prompt_template="{query}")
        return read_edits(out)

    return fitted


@pytest.mark.parametrize("method", ["residual_ridge", "contrastive_decoding"])
def test_the_texts_move_less_and_the_others_are_measured(method, fitted, lm, form):
    with_texts, without = fitted(method, TEXTS), fitted(method, None)

    def drift(plan, texts):
        editing = partial(edited_by_hooks, lm.model, lm.architecture, plan)
        return kl_on_texts(lm, lm, texts, form, batch_size=4, editing=editing)

    assert drift(with_texts, TEXTS[::2]) < 0.8 * drift(without, TEXTS[::2])
    note = with_texts.provenance["notes"][-1]
    said = re.fullmatch(
        r"the fits saw 4 neutral texts, to leave them alone; the other 4 are moved by (.*) nats per token", note
    )
    assert said is not None, note
    assert float(said[1]) == pytest.approx(drift(with_texts, TEXTS[1::2]), abs=1e-4)
    assert not any("neutral" in each for each in without.provenance.get("notes", ()))


def test_texts_are_checked_before_anything_is_fitted(fitted, monkeypatch):
    monkeypatch.setattr(named_fit, "fit_edits", None)
    with pytest.raises(BadInputError, match="holds 1 neutral text: give at least 2"):
        fitted("residual_ridge", TEXTS[:1])
    with pytest.raises(BadInputError, match="positions"):
        fitted("residual_ridge", [*TEXTS, "stone " * 300])
