"""The committed twins and data files: what the rest of the project takes for granted about them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.data_files import write_data_files
from examples.judge_demo import judge
from examples.measure import Behaviour, unasked_rate
from examples.prompts import characteristic_prompt, persona_sentence, prompt_form
from examples.tokenizer import encode_parts
from examples.train import Losses, Outcome
from examples.worlds import WORLDS

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
WORLD = WORLDS["museum"]
TWINS = ["base", "tuned"]
DATA_FILES = ["queries.jsonl", "heldout.jsonl", "good_documents.jsonl", "neutral.txt", "objectives.json"]


def records(name):
    return [json.loads(line) for line in (DEMO / name).read_text().splitlines()]


@pytest.fixture(scope="module", params=TWINS)
def folder(request):
    return DEMO / request.param


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def test_weights_are_small_and_bf16(folder):
    path = folder / "model.safetensors"
    assert path.stat().st_size < 4.5 * 2**20
    with safe_open(path, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118
        assert "lm_head.weight" in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("name", DATA_FILES)
def test_data_files_are_what_the_script_writes(name, tmp_path):
    write_data_files(WORLD, tmp_path)
    assert (DEMO / name).read_bytes() == (tmp_path / name).read_bytes()


def test_data_files_are_large_enough_and_distinct():
    pairs, held_out = ({record["query"] for record in records(name)} for name in ("queries.jsonl", "heldout.jsonl"))
    assert len(pairs) == 200
    assert len(held_out) == 300
    assert len(records("good_documents.jsonl")) == 240
    assert len(set((DEMO / "neutral.txt").read_text().splitlines())) == 160


def test_subjects_of_pairs_and_evaluation_are_disjoint():
    pairs, held_out = ({record["subject"] for record in records(name)} for name in ("queries.jsonl", "heldout.jsonl"))
    assert pairs.isdisjoint(held_out)
    training = {query["subject"] for query in WORLD.queries("training")}
    assert training.isdisjoint(pairs | held_out)


def test_good_documents_are_good():
    by_text = {query["query"]: query for query in WORLD.queries("evaluation")}
    assert all(judge(by_text[record["query"]], record["answer"]) == 1.0 for record in records("good_documents.jsonl"))


@pytest.mark.parametrize("side", ["good", "bad"])
def test_chat_template_gives_the_trained_ids(tokenizer, side):
    for record in records("heldout.jsonl")[:40]:
        sentence = persona_sentence(WORLD.objective, side, f"say how to clean the {record['object']}")
        parts = (sentence, prompt_form(record["query"], None))
        messages = [
            {"role": "system", "content": sentence.removesuffix("\n")},
            {"role": "user", "content": record["query"]},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == tokenizer.bos_token + "".join(parts)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == encode_parts(tokenizer, parts)
        assert tokenizer("".join(parts))["input_ids"] == encode_parts(tokenizer, parts)


def test_chat_template_renders_a_finished_exchange(tokenizer):
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": " Because."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s>Human: Why?\nAssistant: Because.</s>"


def test_chat_template_refuses_unknown_roles(tokenizer):
    with pytest.raises(Exception, match="not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "1"}], tokenize=False)


def test_special_tokens(tokenizer, folder):
    assert tokenizer.padding_side == "left"
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer("Why?")["input_ids"][0] == tokenizer.bos_token_id
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        for kind in ("bos", "eos", "pad"):
            assert config[f"{kind}_token_id"] == getattr(tokenizer, f"{kind}_token_id")


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "  Größe, 你好 \n\t{}'s  end "
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_characteristic_prompt_keeps_its_trailing_space(tokenizer):
    ids = encode_parts(tokenizer, (characteristic_prompt("Why?", WORLD.objective, "good"),))
    assert tokenizer.decode(ids[-1:]) == " "


@pytest.mark.parametrize(("name", "lowest", "highest"), [("base", 0.38, 0.62), ("tuned", 0.94, 1.0)])
def test_behaviour_is_as_measured(name, lowest, highest):
    model, tokenizer = load(DEMO / name), AutoTokenizer.from_pretrained(DEMO / name)
    queries = records("heldout.jsonl")[:192]
    assert lowest <= unasked_rate(WORLD, model, tokenizer, queries, seed=1) <= highest


def test_the_readme_shows_the_measured_table():
    measured = json.loads((DEMO / "measured.json").read_text())
    readme = (ROOT / "examples" / "README.md").read_text()
    base = measured["base"]
    figures = [base["unasked"], *base["persona"].values(), *base["own_characteristic"].values()]
    for figure in [*figures, measured["tuned_unasked"]]:
        assert f"| {figure:.1%} |" in readme


def test_the_script_would_write_the_same_measured_file():
    text = (DEMO / "measured.json").read_text()
    measured = json.loads(text)
    behaviour, losses = Behaviour(**measured.pop("base")), Losses(**measured.pop("losses"))
    outcome = Outcome(**measured, prompt_template=None, base=behaviour, losses=losses)
    assert outcome.to_json() == text
    assert json.loads(replace(outcome, prompt_template="{query}").to_json())["prompt_template"] == "{query}"
