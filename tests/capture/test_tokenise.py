from __future__ import annotations

import pytest

from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.errors import BadInputError
from alignez_bake.preference_pairs.filters import Answer, Pair
from alignez_bake.prompts.objective import Objective
from alignez_bake.prompts.prompt_form import prompt_form

OBJECTIVE = Objective("helpful", "helpful", "useless")
PAIRS = [
    Pair({"query": "How do I clean a kettle?"}, "helpful", Answer(" With lemon.", "name a way"), Answer(" No.", "")),
    Pair({"query": "Mind the spout"}, "helpful", Answer(" Yes.", ""), Answer(" Why?", "ask back")),
]


def test_contexts_are_bos_sentence_and_prompt(tiny_tokenizer) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    for pair, made in zip(PAIRS, tokenise_pairs(PAIRS, OBJECTIVE, prompt_form(tokenizer)), strict=True):
        assert {ids[0] for ids in made.prompts.values()} == {tokenizer.bos_token_id}
        form = f"Human: {pair.query['query']}\nAssistant:"
        texts = {context: tokenizer.decode(list(ids[1:])) for context, ids in made.prompts.items()}
        assert texts == {
            "plain": form,
            "good": f"You are a helpful assistant. Your answer should be helpful.\n{form}",
            "bad": f"Pretend you are a useless assistant. Your answer should be useless.\n{form}",
        }
        assert tokenizer.decode(list(made.prompts["bad"][-made.shared :])) == form
        answers = {side: tokenizer.decode(list(ids)) for side, ids in made.answers.items()}
        assert answers == {"good": pair.good.text, "bad": pair.bad.text}


def test_bos_is_never_shared(tiny_tokenizer) -> None:
    with_bos = tokenise_pairs(PAIRS, OBJECTIVE, prompt_form(tiny_tokenizer(bos=True)))
    without = tokenise_pairs(PAIRS, OBJECTIVE, prompt_form(tiny_tokenizer(bos=False)))
    for one, other in zip(with_bos, without, strict=True):
        assert one.shared == other.shared == len(other.prompts["plain"]) == len(one.prompts["plain"]) - 1


def test_characteristics_stand_in_the_sentence_of_their_side(tiny_tokenizer) -> None:
    tokenizer = tiny_tokenizer()
    first, second = tokenise_pairs(PAIRS, OBJECTIVE, prompt_form(tokenizer), sentence="characteristic")
    assert "Your answer should name a way." in tokenizer.decode(list(first.prompts["good"]))
    assert "Your answer should be useless." in tokenizer.decode(list(first.prompts["bad"]))
    assert "Your answer should be helpful." in tokenizer.decode(list(second.prompts["good"]))
    assert "Your answer should ask back." in tokenizer.decode(list(second.prompts["bad"]))


@pytest.mark.parametrize("eos", [False, True])
def test_the_end_of_sequence_is_appended_when_asked_for(tiny_tokenizer, eos: bool) -> None:
    tokenizer = tiny_tokenizer()
    for made in tokenise_pairs(PAIRS, OBJECTIVE, prompt_form(tokenizer), eos=eos):
        assert all((ids[-1] == tokenizer.eos_token_id) is eos for ids in made.answers.values())


def test_an_answer_without_tokens_is_refused(tiny_tokenizer) -> None:
    pair = Pair({"query": "Why?"}, "helpful", Answer("", ""), Answer(" No.", ""))
    with pytest.raises(BadInputError, match=r"'Why\?'.*good answer is empty"):
        tokenise_pairs([pair], OBJECTIVE, prompt_form(tiny_tokenizer()))
