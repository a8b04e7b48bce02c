"""Pieces of a stream: whole characters, and together exactly the text of all tokens."""

from __future__ import annotations

import random

import pytest

from alignez_bake.runtime.detokenise import Detokeniser
from alignez_bake.runtime.tokenizer import TextTokenizer
from tests.runtime.tokenizers_made import KINDS, TEXT, byte_fallback, byte_level

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request):
    return TextTokenizer(KINDS[request.param](), "m")


def pieces(tokenizer, ids):
    text = Detokeniser(tokenizer)
    return [*(text.push(token) for token in ids), text.rest()]


def test_a_text_of_emoji_and_spaces_comes_back_in_whole_characters(tokenizer):
    ids = tokenizer.encode(TEXT * 10, special_tokens=False)
    assert len(ids) > 200  # longer than what is remembered
    given = pieces(tokenizer, ids)
    whole = tokenizer.decode(ids)
    assert "".join(given) == whole
    assert not any(REPLACEMENT in piece for piece in given)
    assert sum(map(bool, given)) > 100  # piece by piece, not all at the end


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_give_the_text_of_all(tokenizer, seed):
    """Bytes that are no characters, runs of them, special tokens, leading spaces: what a bad model writes."""
    rng = random.Random(seed)
    size = tokenizer.core.get_vocab_size()
    bytes_ = sorted(tokenizer.byte_ids) or list(range(size))
    ids = [rng.choice(bytes_) if rng.random() < 0.3 else rng.randrange(size) for _ in range(200)]
    given = pieces(tokenizer, ids)
    assert "".join(given) == tokenizer.decode(ids)


def test_a_character_is_given_with_its_last_byte():
    tokenizer = TextTokenizer(byte_level(), "m")
    ids = tokenizer.encode("a👩b", special_tokens=False)
    assert len(ids) == 6
    assert pieces(tokenizer, ids) == ["a", "", "", "", "👩", "b", ""]


def test_byte_tokens_wait_for_the_end_of_their_run():
    tokenizer = TextTokenizer(byte_fallback(), "m")
    ids = tokenizer.encode("the 日 the", special_tokens=False)
    assert [len(tokenizer.core.id_to_token(token)) for token in ids[2:5]] == [6, 6, 6]
    assert pieces(tokenizer, ids) == ["the", " ", "", "", "", "日 the", ""]


def test_a_run_of_bytes_that_breaks_off_takes_back_nothing():
    """The decoder makes U+FFFD of the whole run, of its first letter too."""
    tokenizer = TextTokenizer(byte_fallback(), "m")
    ids = [tokenizer.id_of(token) for token in ("▁the", "<0x41>", "<0xE2>")]
    assert tokenizer.decode(ids[:2]) == "theA"
    assert tokenizer.decode(ids) == "the" + 2 * REPLACEMENT
    assert pieces(tokenizer, ids) == ["the", "", "", 2 * REPLACEMENT]


def test_the_space_of_a_word_comes_with_it():
    tokenizer = TextTokenizer(byte_fallback(), "m")
    ids = tokenizer.encode("the and the", special_tokens=False)
    assert tokenizer.decode(ids[1:2]) == "and"  # alone it has none
    assert pieces(tokenizer, ids) == ["the", " and", " the", ""]


def test_a_long_answer_is_not_decoded_from_its_beginning(monkeypatch):
    tokenizer = TextTokenizer(byte_level(), "m")
    seen = []
    real = TextTokenizer.decode
    monkeypatch.setattr(TextTokenizer, "decode", lambda self, ids: seen.append(len(ids)) or real(self, ids))
    text = Detokeniser(tokenizer)
    for token in tokenizer.encode(TEXT * 20, special_tokens=False):
        text.push(token)
    assert len(seen) > 1000
    assert max(seen) < 80
