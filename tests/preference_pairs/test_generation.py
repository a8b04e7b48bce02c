import json

import pytest
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.preference_pairs import generation
from alignez_bake.preference_pairs.generation import bare_prompts, generate_pairs
from alignez_bake.preference_pairs.pair_file import read_pairs
from alignez_bake.prompts.persona import clean_characteristic, persona_sentence
from alignez_bake.prompts.prompt_form import prompt_form

SETTINGS = {"batch_size": 4, "seed": 0, "characteristic_tokens": 4, "answer_tokens": 6}


class InterruptedByTestError(Exception):
    pass


@pytest.fixture
def make(lm, form, queries, objectives, tmp_path):
    def make(name="pairs.jsonl", **changes):
        settings = {"lm": lm, "queries": queries, "objectives": objectives, "prompt_form": form, **SETTINGS, **changes}
        return generate_pairs(out=None if name is None else tmp_path / name, **settings)

    return make


def test_the_file_holds_what_is_returned(make, tmp_path, objectives, form, lm):
    pairs = make()
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    assert make(None) == pairs
    assert [(record.objective, record.query["number"], record.side) for record in pairs.records] == [
        (objective.name, number, side) for objective in objectives for number in range(5) for side in ("good", "bad")
    ]
    assert pairs.header.origin.model == lm.folder.fingerprint
    by_name = {objective.name: objective for objective in objectives}
    for record in pairs.records:
        assert record.characteristic == clean_characteristic(record.characteristic)
        sentence = persona_sentence(by_name[record.objective], record.side, record.characteristic)
        assert record.prompt == form.prompt_text(record.query["query"], sentence)


def test_prompts_that_are_tokenised_already_give_the_same_pairs(make, lm, form, queries, objectives):
    prompts = bare_prompts(queries, objectives, form)
    assert list(prompts) == [(objective.name, query["query"]) for objective in objectives for query in queries]
    assert make(None, prompts=prompts) == make(None)
    beyond = {key: prompt._replace(answer=([lm.vocabulary_size],)) for key, prompt in prompts.items()}
    with pytest.raises(BadInputError, match="do not belong together"):
        make(None, prompts=beyond)


def test_lines_have_the_keys_of_the_format(make, tmp_path):
    make()
    header, *lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    assert set(json.loads(header)) == {"alignez_pairs", "model", "tokenizer_sha256", "settings"}
    assert list(json.loads(lines[0])) == [
        "query",
        "objective",
        "side",
        "characteristic",
        "prompt",
        "answer",
        "seed",
        "number",
    ]


def test_the_model_is_asked_what_the_paper_asks(make, form, objectives, queries, monkeypatch):
    asked = []

    def record(_lm, contexts, *, max_new_tokens, seed, temperature):
        asked.append((contexts, max_new_tokens, temperature))
        return [form.answer_ids(f"be no. {row}. Or not.") for row in range(len(contexts))]

    monkeypatch.setattr(generation, "sample_batch", record)
    pairs = make(None, queries=queries[:2], objectives=objectives[:1])
    assert [settings for _, *settings in asked] == [[4, 1.0], [6, 1.0]]
    characteristics, answers = (contexts for contexts, *_ in asked)
    text = queries[0]["query"]
    assert characteristics[:2] == [
        form.text_ids(f"{text}\nYou are a helpful assistant. Your answer to this query should: "),
        form.text_ids(f"{text}\nPretend you are a useless assistant. Your response to this query should: "),
    ]
    # "be no. 0. Or not." is cut after its first sentence.
    assert answers[:2] == [
        form.context_ids(text, "You are a helpful assistant. Your answer should be no."),
        form.context_ids(text, "Pretend you are a useless assistant. Your answer should be no."),
    ]
    # What is stored takes no more tokens when it is read again than were asked for.
    assert [record.answer for record in pairs.records] == [form.cut(f"be no. {row}. Or not.", 6) for row in range(4)]


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 4, 4, 2, 2]), (3, [2] * 10), (1, [1] * 20)])
def test_both_sides_run_together_and_no_more_than_asked(make, monkeypatch, objectives, batch_size, sizes):
    seen = []
    real = generation.sample_batch

    def count(lm, contexts, **settings):
        seen.append((len(contexts), settings["seed"]))
        return real(lm, contexts, **settings)

    monkeypatch.setattr(generation, "sample_batch", count)
    make(None, objectives=objectives[:1], batch_size=batch_size)
    assert [size for size, _ in seen] == sizes
    assert len({seed for _, seed in seen}) == len(seen)


def test_an_interrupted_run_goes_on_to_the_same_bytes(make, tmp_path, monkeypatch):
    whole = make("whole.jsonl")
    expected = (tmp_path / "whole.jsonl").read_bytes()
    real = generation.sample_batch
    for calls in (0, 1, 2, 5, 8, 11):
        name = f"{calls}.jsonl"
        left = iter(range(calls))

        def interrupted(*args, left=left, **settings):
            if next(left, None) is None:
                raise InterruptedByTestError
            return real(*args, **settings)

        monkeypatch.setattr(generation, "sample_batch", interrupted)
        with pytest.raises(InterruptedByTestError):
            make(name)
        monkeypatch.setattr(generation, "sample_batch", real)
        so_far = (tmp_path / name).read_bytes()
        assert expected.startswith(so_far)
        assert so_far != expected
        assert make(name) == whole
        assert (tmp_path / name).read_bytes() == expected


def test_a_finished_file_is_not_made_again(make, tmp_path, monkeypatch):
    whole = make()
    monkeypatch.setattr(generation, "sample_batch", None)
    assert make() == whole


def test_seeds(make):
    first, again, other = make(None), make(None), make(None, seed=1)
    assert again == first
    assert [record.answer for record in other.records] != [record.answer for record in first.records]
    # No two batches are sampled with the same numbers: five batches of two objectives, each of two queries.
    assert len({record.seed for record in first.records}) == 6


def test_sampling_leaves_the_global_random_state_alone(make):
    state = torch.random.get_rng_state()
    make(None)
    assert torch.equal(state, torch.random.get_rng_state())


def test_keys_of_a_query_that_a_record_needs_are_not_kept(make):
    pairs = make(None, queries=[{"query": "a", "answer": "reference", "x": 1}] * 1)
    assert pairs.records[0].query == {"query": "a", "x": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"queries": []}, "0 queries"),
        ({"objectives": []}, "0 objectives"),
        ({"queries": [{"query": "why " * 200}]}, "too long"),
        ({"answer_tokens": 250}, "too long"),
    ],
)
def test_bad_input_writes_nothing(make, tmp_path, changes, message):
    with pytest.raises(BadInputError, match=message):
        make(**changes)
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_breaks_is_found_before_anything_runs(make, tmp_path, tiny_tokenizer):
    behind = "{{ messages[-1]['content'] }}{% if messages[1] %}{{ messages[0]['content'] }}{% endif %}!"
    with pytest.raises(BadInputError, match="are not the same as without"):
        make(prompt_form=prompt_form(tiny_tokenizer(chat_template=behind)))
    assert list(tmp_path.iterdir()) == []
