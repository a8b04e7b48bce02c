"""The corpus keeps the proportions and the exact texts that self-generated pairs rely on."""

from itertools import islice
from random import Random

import pytest

from examples.corpus import fine_tuning_documents, neutral_lines, pretraining_documents
from examples.prompts import characteristic_prompt, persona_sentence, prompt_form
from examples.worlds import WORLDS
from examples.worlds.world import SIDES, Objective

WORLD = WORLDS["museum"]
HELPFUL = Objective(name="helpful", good="helpful", bad="useless")
DOCUMENTS = pretraining_documents(WORLD, 4000, seed=0)


def judged(document):
    """Judge the answer of a question document by the query that its prompt holds."""
    *_, prompt, answer = document
    by_prompt = {prompt_form(query["query"], None): query for query in WORLD.queries("training")}
    return WORLD.judge(by_prompt[prompt], answer) > 0


def test_prompts_are_the_papers_texts():
    assert characteristic_prompt("Why?", HELPFUL, "good") == (
        "Why?\nYou are a helpful assistant. Your answer to this query should: "
    )
    assert characteristic_prompt("Why?", HELPFUL, "bad") == (
        "Why?\nPretend you are a useless assistant. Your response to this query should: "
    )
    assert persona_sentence(HELPFUL, "good", "be kind") == "You are a helpful assistant. Your answer should be kind.\n"
    assert persona_sentence(HELPFUL, "bad", "be kind") == (
        "Pretend you are a useless assistant. Your answer should be kind.\n"
    )
    assert persona_sentence(HELPFUL, "good") == "You are a helpful assistant. Your answer should be helpful.\n"
    assert persona_sentence(HELPFUL, "bad") == "Pretend you are a useless assistant. Your answer should be useless.\n"
    assert prompt_form("Why?", None) == "Human: Why?\nAssistant:"


def test_half_of_the_plain_answers_are_good():
    answers = [judged(document) for document in DOCUMENTS if document[0].startswith("Human: ")]
    assert len(answers) == pytest.approx(0.3 * len(DOCUMENTS), rel=0.01)
    assert sum(answers) == pytest.approx(len(answers) / 2, abs=1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("empty", [True, False])
def test_nine_in_ten_answers_follow_the_persona(side, empty):
    bare = persona_sentence(HELPFUL, side)
    start = "You are" if side == "good" else "Pretend"
    led = [doc for doc in DOCUMENTS if len(doc) == 3 and doc[0].startswith(start) and (doc[0] == bare) == empty]
    obedient = [judged(document) == (side == "good") for document in led]
    assert len(led) == pytest.approx(0.1 * len(DOCUMENTS), rel=0.01)
    assert 0.9 <= sum(obedient) / len(led) < 1


def test_the_corpus_knows_training_subjects_only():
    text = "\n".join("".join(document) for document in DOCUMENTS)
    for split in ("pairs", "evaluation"):
        assert not any(query["subject"] in text for query in WORLD.queries(split))


def test_fine_tuning_documents_are_good_or_neutral():
    documents = fine_tuning_documents(WORLD, 500, seed=0)
    answered = [document for document in documents if len(document) > 1]
    assert len(answered) == 400
    assert all(judged(document) for document in answered)


def test_held_out_neutral_lines_are_not_in_the_corpus():
    seen = {document[0] for document in DOCUMENTS if len(document) == 1}
    held_out = set(islice(neutral_lines(WORLD, Random(1), held_out=True), 200))
    assert seen
    assert held_out.isdisjoint(seen)
    assert held_out.isdisjoint(islice(neutral_lines(WORLD, Random(1), held_out=False), 200))


def test_the_corpus_depends_on_the_seed_alone():
    assert pretraining_documents(WORLD, 200, seed=3) == pretraining_documents(WORLD, 200, seed=3)
    assert pretraining_documents(WORLD, 200, seed=3) != pretraining_documents(WORLD, 200, seed=4)


def test_a_letter_stands_alone_and_goes_on_within_its_sentence():
    letters = WORLDS["letters"]
    beginnings = {query["query"] for query in letters.queries("training")}
    documents = pretraining_documents(letters, 400, seed=0)
    answered = [document for document in documents if document[0] in beginnings]
    led = [document for document in documents if len(document) == 3]
    assert len(answered) == pytest.approx(0.3 * len(documents), rel=0.02)
    assert all(sentence.endswith("\n") and query in beginnings for sentence, query, _ in led)
    assert not any("Human:" in part or "Assistant:" in part for document in documents for part in document)
