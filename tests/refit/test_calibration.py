"""The texts that edits are refitted on."""

from __future__ import annotations

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.refit.calibration import refit_sequences
from tests.tiny_models import BOS_ID, CONTEXT


def test_both_kinds_of_texts_come_in_any_number_of_tokens(tiny_lm64):
    lm = tiny_lm64("llama")
    form = prompt_form(lm.tokenizer)
    for tokens in (1000, 16384):
        chosen = refit_sequences(lm, form, tokens=tokens)
        assert chosen == refit_sequences(lm, form, tokens=tokens)
        assert tokens - CONTEXT < sum(map(len, chosen)) <= tokens
        asked = ["Human:" in lm.tokenizer.decode(ids) for ids in chosen]
        assert 0.5 < sum(asked) / len(asked) < 0.85  # 260 queries, 120 texts
        assert all(ids[0] == BOS_ID for ids in chosen)
        assert max(map(len, chosen)) <= CONTEXT
        held_out = asked[3::4]
        assert any(held_out)
        assert not all(held_out)
        assert len(set(map(tuple, chosen))) == len(chosen)
    lm.check_fits(chosen)


def test_all_texts_are_used_where_there_is_room(tiny_lm64):
    lm = tiny_lm64("llama")
    assert len(refit_sequences(lm, prompt_form(lm.tokenizer), tokens=10**6)) == 380


def test_no_room_for_a_text_is_refused(tiny_lm64):
    lm = tiny_lm64("llama")
    with pytest.raises(BadInputError, match="2 tokens hold none of the texts"):
        refit_sequences(lm, prompt_form(lm.tokenizer), tokens=2)
