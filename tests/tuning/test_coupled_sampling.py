import pytest
import torch

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.tuning.coupled_sampling import GumbelNoise, coupled_sample
from tests.baking import plan_for
from tests.tiny_models import EOS_ID

CONTEXTS = [[0, 40, 41, 42, 43, 44, 45, 46, 47], [0, 50], [0, 60, 61, 62, 63], [0, 70, 71, 72], [0, 80, 81], [0, 90]]
NUMBERS = list(range(len(CONTEXTS)))
SETTINGS = {"seed": 3, "max_new_tokens": 24, "batch_size": 6}


def sampled(lm, contexts=CONTEXTS, numbers=NUMBERS, **settings):
    return coupled_sample(lm, contexts, numbers, **(SETTINGS | settings))


def test_the_same_call_gives_the_same_answers_and_another_seed_others(lm):
    state = torch.random.get_rng_state()
    first = sampled(lm)
    assert torch.equal(state, torch.random.get_rng_state())
    assert sampled(lm) == first
    assert all(one != other for one, other in zip(sampled(lm, seed=4), first, strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_an_answer_does_not_depend_on_what_runs_beside_it(lm, batch_size):
    """Rows that end are taken out at other times, and batches hold other rows."""
    assert sampled(lm, batch_size=batch_size) == sampled(lm)


def test_an_answer_depends_on_its_number_alone(lm):
    whole = sampled(lm)
    assert sampled(lm, CONTEXTS[3:], NUMBERS[3:]) == whole[3:]
    backwards = sampled(lm, CONTEXTS[::-1], NUMBERS[::-1])
    assert backwards[::-1] == whole
    same_context = sampled(lm, [CONTEXTS[0]] * 6)
    assert len({tuple(answer.ids) for answer in same_context}) == 6


def test_answers_end_with_eos_or_are_full(lm):
    found = coupled_sample(lm, [CONTEXTS[1]] * 200, range(200), seed=0, max_new_tokens=60, batch_size=100)
    ended = [answer for answer in found if answer.end is not None]
    assert 0 < len(ended) < len(found)
    assert all(answer.end == EOS_ID and len(answer.ids) < 60 for answer in ended)
    assert all(len(answer.ids) == 60 for answer in found if answer.end is None)
    assert all(EOS_ID not in answer.ids for answer in found)
    # Each end takes a row out of so small a batch, and its neighbours keep their noise.
    few = coupled_sample(lm, [CONTEXTS[1]] * 60, range(60), seed=0, max_new_tokens=60, batch_size=7)
    assert few == found[:60]
    assert any(answer.end is not None for answer in few)


def test_answers_follow_the_models_own_distribution(lm):
    count = 3000
    with torch.no_grad():
        expected = torch.softmax(lm.model(torch.tensor([CONTEXTS[1]])).logits[0, -1], dim=-1)
    found = coupled_sample(lm, [CONTEXTS[1]] * count, range(count), seed=0, max_new_tokens=1, batch_size=1000)
    seen = torch.zeros_like(expected)
    for answer in found:
        seen[answer.ids[0] if answer.ids else answer.end] += 1 / count
    spread = (expected * (1 - expected) / count).sqrt().sum()
    assert (seen - expected).abs().sum() < 1.2 * spread


def test_a_model_that_hardly_differs_answers_mostly_alike(lm):
    """With noise of its own for each call none of these would be equal."""
    plan = plan_for(lm.folder.path)
    count = 40

    def answers(plan):
        with edited_by_hooks(lm.model, lm.architecture, plan):
            return coupled_sample(lm, [CONTEXTS[3]] * count, range(count), seed=0, max_new_tokens=12, batch_size=count)

    base = answers(EditPlan(()))
    gentle, strong = answers(plan.scaled(1e-3)), answers(plan.scaled(3.0))
    equal = [sum(one == other for one, other in zip(base, edited, strict=True)) for edited in (gentle, strong)]
    assert equal[0] >= 0.8 * count
    assert equal[1] < 0.5 * count


def test_noise_is_gumbels_and_its_rows_are_independent():
    noise = GumbelNoise(0, range(4), torch.device("cpu"))
    values = torch.cat([noise.step(range(4), 5000) for _ in range(4)], dim=1).double()
    assert values.mean() == pytest.approx(0.5772, abs=0.02)
    assert values.var() == pytest.approx(1.6449, abs=0.05)
    assert torch.corrcoef(values).fill_diagonal_(0).abs().max() < 0.03
    assert torch.corrcoef(values[0].view(4, 5000)).fill_diagonal_(0).abs().max() < 0.06


def test_bad_input(lm):
    with pytest.raises(BadInputError, match="max_new_tokens = 0"):
        sampled(lm, max_new_tokens=0)
    with pytest.raises(BadInputError, match="256 positions"):
        sampled(lm, max_new_tokens=250)
    with pytest.raises(BadInputError, match="batch size 0"):
        sampled(lm, batch_size=0)
