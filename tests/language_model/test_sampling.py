from dataclasses import replace
from itertools import takewhile

import pytest
import torch
from transformers import GenerationConfig

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.sampling import derived_seed, iter_sampled_batches, sample
from tests.tiny_models import EOS_ID, MODEL_TYPES

CONTEXTS = [[0, 40, 41, 42, 43, 44, 45, 46, 47], [0, 50], [0, 60, 61, 62, 63], [0, 70, 71, 72]]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_padded_batch_gives_what_each_context_gives_alone(tiny_lm, model_type):
    lm = tiny_lm(model_type)
    settings = {"max_new_tokens": 12, "seed": 0, "greedy": True}
    together = sample(lm, CONTEXTS, batch_size=4, **settings)
    assert together == [sample(lm, [context], batch_size=1, **settings)[0] for context in CONTEXTS]
    assert len({tuple(answer) for answer in together}) == len(CONTEXTS)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_greedy_is_the_argmax_of_a_plain_forward_pass(tiny_lm, model_type):
    lm = tiny_lm(model_type)
    ids = list(CONTEXTS[2])
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    got = sample(lm, CONTEXTS, max_new_tokens=6, batch_size=4, seed=0, greedy=True)[2]
    assert [*CONTEXTS[2], *got] == ids[: len(CONTEXTS[2]) + len(got)]
    assert len(got) == 6 or ids[len(CONTEXTS[2]) + len(got)] == EOS_ID


def test_the_same_call_gives_the_same_samples_and_another_seed_others(tiny_lm):
    lm = tiny_lm("llama")
    settings = {"max_new_tokens": 10, "batch_size": 3}
    state = torch.random.get_rng_state()
    first = sample(lm, CONTEXTS, seed=1, **settings)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert sample(lm, CONTEXTS, seed=1, **settings) == first
    assert sample(lm, CONTEXTS, seed=2, **settings) != first


def test_batches_are_not_sampled_with_the_same_numbers(tiny_lm):
    answers = sample(tiny_lm("llama"), [CONTEXTS[0]] * 4, max_new_tokens=10, batch_size=1, seed=0)
    assert len({tuple(answer) for answer in answers}) == 4


def test_sampling_follows_the_models_own_distribution(tiny_lm):
    lm = tiny_lm("llama")
    count = 3000
    with torch.no_grad():
        expected = torch.softmax(lm.model(torch.tensor([CONTEXTS[1]])).logits[0, -1], dim=-1)
    answers = sample(lm, [CONTEXTS[1]] * count, max_new_tokens=1, batch_size=1000, seed=0)
    seen = torch.zeros_like(expected)
    for answer in answers:
        seen[answer[0] if answer else EOS_ID] += 1 / count
    spread = (expected * (1 - expected) / count).sqrt().sum()
    assert (seen - expected).abs().sum() < 1.2 * spread


def test_temperature_sharpens(tiny_lm):
    lm = tiny_lm("llama")
    settings = {"max_new_tokens": 8, "batch_size": 4, "seed": 0}
    assert sample(lm, CONTEXTS, temperature=1e-4, **settings) == sample(lm, CONTEXTS, greedy=True, **settings)


def test_settings_of_the_models_generation_config_are_not_inherited(tiny_lm):
    lm = tiny_lm("llama")
    settings = {"max_new_tokens": 12, "batch_size": 4, "seed": 3}
    expected = sample(lm, CONTEXTS, **settings)
    own = lm.model.generation_config
    tricky = GenerationConfig(
        repetition_penalty=5.0, top_k=1, temperature=0.1, do_sample=True, min_new_tokens=12, suppress_tokens=[5]
    )
    lm.model.generation_config = tricky
    try:
        assert sample(lm, CONTEXTS, **settings) == expected
        assert lm.model.generation_config is tricky
    finally:
        lm.model.generation_config = own


def test_eos_and_what_follows_is_cut(tiny_lm):
    lm = tiny_lm("llama")
    answers = sample(lm, [CONTEXTS[1]] * 400, max_new_tokens=8, batch_size=200, seed=0)
    assert all(EOS_ID not in answer for answer in answers)
    assert any(len(answer) < 8 for answer in answers)
    assert any(len(answer) == 8 for answer in answers)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_answers_that_have_ended_leave_the_batch_and_the_others_go_on_the_same(tiny_lm, model_type):
    settings = {"max_new_tokens": 12, "seed": 0, "greedy": True}
    whole = sample(tiny_lm(model_type), CONTEXTS, batch_size=4, **settings)
    lm = replace(tiny_lm(model_type))
    longest = sorted(whole, key=len)[-2:]
    vars(lm)["eos_ids"] = (*lm.eos_ids, longest[0][2], longest[1][5])
    expected = [list(takewhile(lambda token: token not in lm.eos_ids, answer)) for answer in whole]
    sizes = []
    forward = lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        assert sample(lm, CONTEXTS, batch_size=4, **settings) == expected
    finally:
        forward.remove()
    assert sizes[0] == 4
    assert sizes[-1] < 4
    assert len(sizes) == min(12, max(map(len, expected)) + 1)


def test_batches_come_one_by_one_with_their_places(tiny_lm):
    lm = tiny_lm("llama")
    settings = {"max_new_tokens": 5, "batch_size": 3, "seed": 0}
    whole = sample(lm, CONTEXTS, **settings)
    batches = list(iter_sampled_batches(lm, CONTEXTS, **settings))
    assert [batch.indices for batch in batches] == [[0, 2, 3], [1]]
    for batch in batches:
        assert batch.answers == [whole[index] for index in batch.indices]


@pytest.mark.parametrize(
    ("contexts", "changed", "message"),
    [
        ([[1]], {"max_new_tokens": 0}, "at least one token"),
        ([[1]], {"temperature": 0.0}, "temperature 0.0"),
        ([[1]], {"temperature": float("nan")}, "temperature nan"),
        ([[1]], {"seed": -1}, "seed -1"),
        ([[1], []], {}, "sequence 1 is empty"),
        ([[1] * 250], {"max_new_tokens": 20}, "too long"),
    ],
)
def test_bad_settings(tiny_lm, contexts, changed, message):
    settings = {"max_new_tokens": 3, "batch_size": 2, "seed": 0, **changed}
    with pytest.raises(BadInputError, match=message):
        sample(tiny_lm("llama"), contexts, **settings)


def test_no_contexts_give_no_answers(tiny_lm):
    assert sample(tiny_lm("llama"), [], max_new_tokens=3, batch_size=2, seed=0) == []


def test_seeds_are_stable_over_machines_and_releases():
    assert derived_seed(0, "sample", 0) == 9045690239344326949
    assert len({derived_seed(s, name, n) for s in range(3) for name in ("a", "b") for n in range(3)}) == 18
