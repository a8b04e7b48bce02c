import pytest
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.tuning import tuner
from alignez_bake.tuning.candidate import Candidate, TunedObjective
from alignez_bake.tuning.neutral import shipped_neutral_texts
from alignez_bake.tuning.tuner import BUDGET_SHARE, split_queries, tune

ALL_LAYERS = tuple(range(6))
TEXTS = shipped_neutral_texts()[::8]


def ridge(strength, **settings):
    return Candidate(f"ridge {strength}", RIDGE, MethodSettings(strength=strength, **settings), ALL_LAYERS)


LADDER = (ridge(0.5), ridge(2.0), ridge(8.0), ridge(1.0, rank=500))


@pytest.fixture(scope="module")
def run(demo_lm, demo_form, demo_objective, demo_queries):
    """`run(candidates, ...)`: a short search on the demo's base."""

    def run(candidates=LADDER, objectives=(demo_objective,), held_out=demo_queries[1], **settings):
        return tune(
            demo_lm,
            objectives,
            candidates,
            held_out,
            demo_form,
            neutral_texts=TEXTS,
            **({"pairs_sha256": "p", "seed": 0, "batch_size": 96, "max_new_tokens": 40, "rounds": (24, 72)} | settings),
        ).result

    return run


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    """The search and its file."""
    path = tmp_path_factory.mktemp("tuning") / "state.jsonl"
    return run(state_path=path), path


def test_the_right_strength_is_chosen_without_labels(found):
    result, _ = found
    points = {point.candidate: point for point in result.points}
    assert result.chosen == "ridge 2.0"
    assert result.gain.low > 0.1
    assert points["ridge 2.0"].rate.value > points["ridge 0.5"].rate.value + 0.1
    assert points["ridge 8.0"].out is not None or points["ridge 8.0"].rate.value < points["ridge 2.0"].rate.value
    assert points["ridge 1.0"].out.endswith("its map is 160 x 160")
    assert points["ridge 0.5"].kl < points["ridge 2.0"].kl
    assert (result.queries, result.floors.keys()) == (24, {"helpful"})


def test_the_default_budget_is_a_share_of_the_bases_loss(found, demo_lm, demo_form):
    """Which is a loss: what the texts cost the base, token by token, after the first."""
    documents = [demo_form.text_ids(text) for text in TEXTS]
    total = count = 0
    for ids in documents:
        with torch.no_grad():
            rows = torch.log_softmax(demo_lm.model(torch.tensor([ids])).logits[0, :-1].double(), dim=-1)
        total -= float(rows.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    assert found[0].kl_budget == pytest.approx(BUDGET_SHARE * total / count, rel=1e-2)


def test_an_interrupted_search_ends_in_the_same_bytes(run, found, monkeypatch, tmp_path):
    result, whole = found
    path = tmp_path / "state.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:90])
    assert run(state_path=path) == result
    assert path.read_bytes() == whole.read_bytes()
    monkeypatch.setattr("alignez_bake.tuning.judged_sampling.coupled_sample", None)
    monkeypatch.setattr("alignez_bake.tuning.self_judge.coupled_sample", None)
    assert run(state_path=path) == result


def test_another_search_does_not_take_the_file_up(run, found):
    _, path = found
    before = path.read_bytes()
    for settings, message in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"pairs_sha256": "other"}, "pairs_sha256 was 'p', now 'other'"),
        ({"candidates": LADDER[:2]}, "candidates was"),
        ({"kl_budget": 0.01}, "kl_budget was"),
    ):
        with pytest.raises(BadInputError, match=message):
            run(state_path=path, **settings)
    assert path.read_bytes() == before


def test_edits_that_do_nothing_are_not_chosen(run):
    """Coupled to the base, they answer what it answers: the gain is 0, not noise."""
    result = run((ridge(1e-9),), rounds=(24,))
    assert result.chosen is None
    assert (result.gain.value, result.gain.low, result.gain.high) == (0, 0, 0)
    assert result.reason.endswith("is not above 0")


def test_a_negative_dial_wants_the_opposite(run, demo_objective):
    """Its edits push the other way, and the judge asks the other persona."""
    result = run((ridge(2.0),), (TunedObjective(demo_objective.objective, -1.0, demo_objective.capture),), rounds=(48,))
    assert result.chosen == "ridge 2.0"
    assert result.gain.low > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": ()}, "nothing to choose from: 1 objectives, 0 candidates"),
        ({"objectives": ()}, "nothing to choose from: 0 objectives"),
        ({"candidates": (ridge(1.0), ridge(1.0, rank=2))}, "two candidates are called 'ridge 1.0'"),
        ({"held_out": [{"query": "a"}] * 7}, "7 held-out queries are too few"),
        ({"kl_budget": -1.0}, "KL budget -1.0"),
        ({"max_new_tokens": 600}, "512 positions"),
    ],
)
def test_bad_input_comes_before_any_work(run, monkeypatch, settings, message):
    monkeypatch.setattr(tuner, "plans_of", None)
    monkeypatch.setattr(tuner, "search", None)
    with pytest.raises(BadInputError, match=message):
        run(**settings)


def test_a_dial_of_nothing(run, demo_objective):
    with pytest.raises(BadInputError, match="'helpful' has weight 0"):
        run(objectives=(TunedObjective(demo_objective.objective, 0.0, demo_objective.capture),))


@pytest.mark.parametrize(("count", "held_out"), [(16, 8), (23, 8), (24, 8), (30, 10), (200, 66)])
def test_a_third_is_held_out(count, held_out):
    queries = [{"query": f"query {number}", "number": number} for number in range(count)]
    split = split_queries(queries, 0)
    assert len(split.held_out) == held_out
    for part in split:
        assert part == sorted(part, key=lambda query: query["number"])
    assert sorted(split.pairs + split.held_out, key=lambda query: query["number"]) == queries
    assert split_queries(queries, 0) == split
    assert split_queries(queries, 1) != split


def test_too_few_queries():
    with pytest.raises(BadInputError, match="15 queries are too few to choose an edit: 16 are needed"):
        split_queries([{"query": str(number)} for number in range(15)], 0)
