"""Ids and text are those of transformers' tokenizer of the same folder."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.side_files import SideFiles
from alignez_bake.runtime.tokenizer import load_tokenizer
from alignez_bake.runtime.tokenizer_settings import read_tokenizer_settings
from tests.runtime.tokenizers_made import KINDS, TEXT, byte_fallback, byte_level, save_tokenizer

TEXTS = [TEXT, "", " begins with a space", "<s>the</s> and <extra> the", "the\tlemon"]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def loaded(folder):
    files = SideFiles(folder, folder / "model.onnx")
    return load_tokenizer(files, read_tokenizer_settings(files))


def agrees(folder) -> list[list[int]]:
    """Compare with transformers; the ids of all texts."""
    ours, theirs = loaded(folder), AutoTokenizer.from_pretrained(folder)
    ids = [ours.encode(text) for text in TEXTS]
    assert ids == [theirs(text)["input_ids"] for text in TEXTS]
    bare = [ours.encode(text, special_tokens=False) for text in TEXTS]
    assert bare == [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [ours.decode(row) for row in ids] == [theirs.decode(row, skip_special_tokens=True) for row in ids]
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_agrees_with_transformers(tmp_path, kind):
    config = {**FAST, "eos_token": "</s>", "clean_up_tokenization_spaces": False}
    agrees(save_tokenizer(KINDS[kind](), tmp_path, config))


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_what_goes_around_a_text_is_in_the_file_alone(tmp_path, in_file, flags):
    config = {**FAST, "bos_token": "<s>", "eos_token": "</s>", **flags}
    core = byte_level(bos=True)
    if not in_file:
        core.post_processor = processors.ByteLevel()
    first = agrees(save_tokenizer(core, tmp_path, config))[0]
    assert (first[0] == core.token_to_id("<s>")) == in_file
    assert first[-1] != core.token_to_id("</s>")


def test_tokens_that_the_config_alone_has_are_added(tmp_path):
    core = byte_fallback()
    next_id = core.get_vocab_size()
    config = {
        **FAST, "bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>", "pad_token": "<pad>",
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True}, "1": {"content": "<s>", "special": True},
            "2": {"content": "</s>", "special": False}, str(next_id): {"content": "<extra>", "special": False},
            str(next_id + 1): {"content": "<turn>", "special": True, "lstrip": True},
        },
    }  # fmt: skip
    ids = agrees(save_tokenizer(core, tmp_path, config))
    assert next_id in ids[3]
    ours = loaded(tmp_path)
    assert ours.id_of("<pad>") == next_id + 2
    assert {ours.id_of("<turn>"), ours.id_of("<pad>")} <= ours.special_ids
    assert ours.id_of("</s>") in ours.special_ids  # a token with a name is special, whatever its entry says
    assert next_id not in ours.special_ids


def test_a_special_token_that_is_an_ordinary_word_in_the_file_is_special(tmp_path):
    core = byte_fallback()
    folder = save_tokenizer(core, tmp_path, {**FAST, "eos_token": "▁lemon", "extra_special_tokens": ["▁le", "▁new"]})
    agrees(folder)
    assert loaded(folder).id_of("▁le") in loaded(folder).special_ids


def test_an_older_folder_names_its_tokens_in_a_file_of_their_own(tmp_path):
    folder = save_tokenizer(byte_level(), tmp_path, FAST)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>", "lstrip": False}}))
    settings = read_tokenizer_settings(SideFiles(folder, folder / "model.onnx"))
    assert settings.named == {"eos_token": "</s>"}
    agrees(folder)


def test_truncation_and_padding_of_the_file_are_left_out(tmp_path):
    core = byte_level()
    plain = core.encode(TEXT).ids
    core.enable_truncation(4)
    core.enable_padding(length=500)
    assert loaded(save_tokenizer(core, tmp_path)).encode(TEXT) == plain


def test_a_table_of_another_model_is_refused(tmp_path):
    config = {"added_tokens_decoder": {"7": {"content": "<s>", "special": True}}}
    with pytest.raises(BadInputError, match=r"has '<s>' as 0, and tokenizer_config.json as 7"):
        loaded(save_tokenizer(byte_level(), tmp_path, config))


def test_a_missing_tokenizer_names_the_way_to_write_it(tmp_path):
    with pytest.raises(BadInputError, match=r"tokenizer\.json is missing: .*save_pretrained"):
        loaded(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": {"type": "BPE", "vocab": 3}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path, data):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(BadInputError, match=r"tokenizer\.json is no tokenizer"):
        loaded(tmp_path)


def damaged(folder, change):
    data = json.loads(byte_level().to_str())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def test_a_file_that_makes_the_package_panic_is_refused(tmp_path):
    """Rust's panics are no Exception, and would be a traceback."""
    with pytest.raises(BadInputError, match=r"tokenizer\.json is no tokenizer \('range end index"):
        loaded(damaged(tmp_path, lambda data: data["model"].update(continuing_subword_prefix="▁" * 6)))


def test_a_file_that_fails_at_a_text_is_refused_there(tmp_path):
    tokenizer = loaded(damaged(tmp_path, lambda data: data["post_processor"].update(special_tokens={})))
    assert tokenizer.encode("the", special_tokens=False)
    with pytest.raises(BadInputError, match=r"tokenizer\.json cannot encode a text \('no entry found"):
        tokenizer.encode("the")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_damage(tmp_path, monkeypatch, interrupt):
    tokenizer = loaded(save_tokenizer(byte_level(), tmp_path))

    class Interrupted:
        def decode(self, *_, **__):
            raise interrupt

    with pytest.raises(interrupt):
        dataclasses.replace(tokenizer, core=Interrupted()).decode([1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": 3}, "eos_token is 3, and a token is a text"),
        ({"eos_token": {"lstrip": True}}, "eos_token is"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is no object"),
        ({"added_tokens_decoder": {"-1": {"content": "a"}}}, "entry '-1' that is no token's"),
        ({"added_tokens_decoder": {"1": "a"}}, "entry '1' that is no token's"),
        ({"added_tokens_decoder": {"1": {"content": "a", "special": 1}}}, "special is 1"),
        ({"extra_special_tokens": "a"}, "extra_special_tokens is 'a', and a list is meant"),
        ({"extra_special_tokens": [1]}, "extra_special_tokens is 1"),
        ({"chat_template": 5}, "chat_template is 5, and a text is meant"),
    ],
)
def test_entries_of_another_type_are_refused(tmp_path, config, message):
    with pytest.raises(BadInputError, match=message):
        loaded(save_tokenizer(byte_level(), tmp_path, config))


def test_a_config_that_is_no_strict_json_is_refused(tmp_path):
    save_tokenizer(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a", "eos_token": "b"}')
    with pytest.raises(BadInputError, match="key 'eos_token' is given twice"):
        loaded(tmp_path)


def test_a_file_beyond_its_bound_is_refused_unread(tmp_path):
    save_tokenizer(byte_level(), tmp_path)
    with (tmp_path / "tokenizer_config.json").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(BadInputError, match="has more than 16777216 bytes"):
        loaded(tmp_path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    secret = save_tokenizer(byte_level(), tmp_path / "elsewhere") / "tokenizer.json"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").symlink_to(secret)
    with pytest.raises(BadInputError, match=r"is a link to .*elsewhere.*, out of the model's folder"):
        loaded(folder)


def test_the_hubs_cache_links_to_where_the_graph_lies(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    save_tokenizer(byte_level(), blobs)
    (blobs / "graph").write_bytes(b"")
    snapshot.mkdir(parents=True)
    (snapshot / "model.onnx").symlink_to("../../blobs/graph")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/tokenizer.json")
    assert loaded(snapshot).encode("a") == byte_level().encode("a").ids


def test_flags_of_the_config_outweigh_those_of_the_file(tmp_path):
    core = byte_level()
    core.add_tokens([AddedToken("<extra>", special=False)])
    number = str(core.token_to_id("<extra>"))
    config = {**FAST, "added_tokens_decoder": {number: {"content": "<extra>", "special": True, "rstrip": True}}}
    folder = save_tokenizer(core, tmp_path, config)
    agrees(folder)
    assert int(number) in loaded(folder).special_ids
