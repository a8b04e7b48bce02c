"""A folder as a model of text: what goes in and comes out are texts, and the tokens between are the graph's."""

from __future__ import annotations

import json

import onnxruntime
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import Sampling, generate
from alignez_bake.runtime.text import open_folder
from tests.runtime.graphs import causal_model, saved
from tests.runtime.tokenizers_made import KINDS, byte_level, save_tokenizer
from tests.tiny_models import tiny_tokenizer

PROMPTS = ["Human: How do I clean a kettle?\nAssistant:", "the spout", "日本語 👩‍👩‍👧"]
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}Assistant:"
NEW = 24


def folder_of(core, folder, tokens=None, **files):
    save_tokenizer(core, folder, {"bos_token": "<s>", "eos_token": "</s>", **(tokens or {})})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    saved(causal_model(vocabulary=core.get_vocab_size()), folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return open_folder(folder_of(KINDS[request.param](), tmp_path_factory.mktemp(request.param)), ["cpu"])


def test_an_answer_is_the_text_of_the_tokens(model):
    contexts = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    ids = generate(model.graph, contexts, max_new_tokens=NEW, stop_ids=model.stop_ids)
    assert sum(map(len, ids)) > NEW
    answers = model.answer(PROMPTS, max_new_tokens=NEW)
    assert answers == [model.tokenizer.core.decode(row) for row in ids]
    assert len(set(map(tuple, ids))) == len(PROMPTS)


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=20.0, seed=3), Sampling(temperature=20.0, seed=4)])
def test_a_stream_is_the_answer_in_pieces(model, sampling):
    """A high temperature on random weights gives tokens that no text has, half characters too."""
    for prompt in PROMPTS:
        pieces = list(model.stream_text(prompt, max_new_tokens=100, sampling=sampling))
        assert [*map(bool, pieces)] == [True] * len(pieces)
        assert "".join(pieces) == model.answer([prompt], max_new_tokens=100, sampling=sampling)[0]


def test_pieces_come_while_the_model_writes(tmp_path, monkeypatch):
    model = open_folder(folder_of(byte_level(), tmp_path), ["cpu"])
    runs = []
    real = model.graph.session.run_with_iobinding
    monkeypatch.setattr(model.graph.session, "run_with_iobinding", lambda binding: runs.append(1) or real(binding))
    stream = model.stream_text("the", max_new_tokens=100)
    assert not runs
    next(stream)
    assert 1 <= len(runs) < 20


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(tmp_path):
    whole = open_folder(folder_of(byte_level(), tmp_path / "a"), ["cpu"])
    ids = generate(whole.graph, [whole.context("the")], max_new_tokens=NEW)[0]
    stop = ids[5]
    cut = open_folder(
        folder_of(byte_level(), tmp_path / "b", generation_config={"eos_token_id": [stop, 10**6]}), ["cpu"]
    )
    assert cut.stop_ids == {stop, cut.tokenizer.id_of("</s>")}  # what is out of the vocabulary ends nothing
    assert cut.answer(["the"], max_new_tokens=NEW) == [whole.tokenizer.decode(ids[: ids.index(stop)])]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {1}),
        ({"config": {"eos_token_id": 9}}, {1, 9}),
        ({"config": {"eos_token_id": 9}, "generation_config": {"eos_token_id": [7, 8]}}, {1, 7, 8}),
        ({"config": {"eos_token_id": 9}, "generation_config": {"pad_token_id": 3}}, {1, 9}),
        ({"config": {"eos_token_id": -1}}, {1}),
        ({"config": {"eos_token_id": None}}, {1}),
    ],
)
def test_stops_are_stated_in_three_files(tmp_path, files, expected):
    assert open_folder(folder_of(byte_level(), tmp_path, **files), ["cpu"]).stop_ids == expected


@pytest.mark.parametrize("value", ["</s>", 1.0, True, [1, "2"], list(range(2000)), 2**40])
def test_stops_that_are_no_ids_are_refused(tmp_path, value):
    with pytest.raises(BadInputError, match=r"eos_token_id is .* a token id or a list of up to 1024 is meant"):
        open_folder(folder_of(byte_level(), tmp_path, generation_config={"eos_token_id": value}), ["cpu"])


@pytest.mark.parametrize(("config", "expected"), [({"pad_token": "<pad>"}, 2), ({}, 1), ({"pad_token": "<beyond>"}, 1)])
def test_the_id_at_padding_is_one_that_the_model_knows(tmp_path, config, expected):
    """`<beyond>` is in no vocabulary, so that its id is the first behind the model's."""
    model = open_folder(folder_of(byte_level(), tmp_path, tokens=config), ["cpu"])
    assert model.pad_id == expected
    assert model.answer(PROMPTS, max_new_tokens=4) == [model.answer([p], max_new_tokens=4)[0] for p in PROMPTS]


def test_a_chat_goes_through_the_template_and_has_one_bos(tmp_path):
    folder = folder_of(byte_level(), tmp_path, tokens={"chat_template": "in the config"})
    (folder / "chat_template.jinja").write_text(CHAT)
    model = open_folder(folder, ["cpu"])
    messages = [{"role": "user", "content": "the lemon"}]
    theirs = tiny_tokenizer(chat_template=CHAT)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert model.context(messages) == expected
    assert expected.count(0) == 1
    text = "the lemon\nAssistant:"
    assert model.context(text) == expected
    assert model.answer([messages, text], max_new_tokens=5) == 2 * model.answer([text], max_new_tokens=5)


def test_a_chat_without_a_template_is_refused(model):
    with pytest.raises(BadInputError, match="has no chat template: give the prompt as plain text"):
        model.answer([[{"role": "user", "content": "a"}]], max_new_tokens=1)


def test_one_of_several_templates_is_the_default(tmp_path):
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "d"}]
    model = open_folder(folder_of(byte_level(), tmp_path, tokens={"chat_template": templates}), ["cpu"])
    assert model.tokenizer.decode(model.context([{"role": "user", "content": "a"}])) == "d"


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions"])
def test_what_is_too_long_for_the_model_is_refused_before_it_runs(tmp_path, name):
    model = open_folder(folder_of(byte_level(), tmp_path, config={name: 12}), ["cpu"])
    read = len(model.context("the"))
    assert len(model.answer(["the"], max_new_tokens=12 - read)[0]) > 0
    message = f"a prompt of {read} tokens and {13 - read} new ones are too long"
    with pytest.raises(BadInputError, match=message):
        model.answer(["the"], max_new_tokens=13 - read)
    with pytest.raises(BadInputError, match=message):
        model.stream_text("the", max_new_tokens=13 - read)


@pytest.mark.parametrize("value", ["many", 0, True, 1.5])
def test_positions_that_are_no_number_are_refused(tmp_path, value):
    with pytest.raises(BadInputError, match="max_position_embeddings is"):
        open_folder(folder_of(byte_level(), tmp_path, config={"max_position_embeddings": value}), ["cpu"])


def test_a_text_instead_of_a_list_is_refused(model):
    with pytest.raises(BadInputError, match="prompts are a list"):
        model.answer("the", max_new_tokens=1)


def test_an_empty_prompt_without_bos_is_refused(tmp_path):
    core = byte_level(bos=False)
    model = open_folder(folder_of(core, tmp_path, tokens={"bos_token": None}), ["cpu"])
    with pytest.raises(BadInputError, match="context 0 is empty"):
        model.stream_text("", max_new_tokens=1)


def test_a_damaged_tokenizer_is_refused_before_the_graph_is_loaded(tmp_path, monkeypatch):
    folder = folder_of(byte_level(), tmp_path)
    (folder / "tokenizer.json").write_text("{}")

    def opened(*_, **__):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with pytest.raises(BadInputError, match="is no tokenizer"):
        open_folder(folder, ["cpu"])


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="is no folder"):
        open_folder(saved(causal_model(), tmp_path), ["cpu"])
