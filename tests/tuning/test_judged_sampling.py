import pytest
import torch

from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.tuning.coupled_sampling import coupled_sample
from alignez_bake.tuning.judged_sampling import JudgedSampling
from tests.baking import plan_for

QUERIES = ("How?", "Why is it so?", "When?")
IDS = torch.tensor([[0, 40, 41, 42]])


class Panel:
    """Keeps what it is asked, and what the model says while it judges."""

    def __init__(self, lm):
        self.lm = lm
        self.asked = []
        self.logits = []

    def values(self, queries, answers):
        self.asked.append((list(queries), list(answers)))
        with torch.no_grad():
            self.logits.append(self.lm.model(IDS).logits)
        return [float(number) for number in range(len(queries))]


@pytest.fixture
def sampling(lm, form):
    return JudgedSampling(lm, QUERIES, form, Panel(lm), seed=4, batch_size=3, max_new_tokens=10)


def test_the_edited_model_answers_and_the_base_judges(lm, form, sampling):
    plan = plan_for(lm.folder.path)
    assert sampling(plan, range(2, 6)) == [0.0, 1.0, 2.0, 3.0]
    queries, answers = sampling.panel.asked[0]
    assert queries == [QUERIES[2], QUERIES[0], QUERIES[1], QUERIES[2]]
    contexts = [form.context_ids(query, None) for query in queries]
    with edited_by_hooks(lm.model, lm.architecture, plan):
        expected = coupled_sample(lm, contexts, range(2, 6), seed=4, max_new_tokens=10, batch_size=3)
        with torch.no_grad():
            edited = lm.model(IDS).logits
    assert answers == expected
    with torch.no_grad():
        base = lm.model(IDS).logits
    assert torch.equal(sampling.panel.logits[0], base)
    assert not torch.allclose(edited, base, atol=1e-2)


def test_the_first_answers_of_more_are_those_of_fewer(lm, sampling):
    """So the rounds of a search are nested."""
    plan = plan_for(lm.folder.path)
    sampling(plan, range(9))
    sampling(plan, range(4))
    sampling(plan, range(4, 9))
    whole, first, rest = (answers for _, answers in sampling.panel.asked)
    assert first + rest == whole
    sampling(EditPlan(()), range(9))
    assert sampling.panel.asked[3][1] != whole
