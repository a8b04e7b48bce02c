import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import left_padded, length_sorted_batches, right_padded

SEQUENCES = [[5, 6, 7], [8], [9, 10]]


def test_right_padding():
    ids, mask, positions = right_padded(SEQUENCES, 2)
    assert ids.tolist() == [[5, 6, 7], [8, 2, 2], [9, 10, 2]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 1]]
    assert ids.dtype == mask.dtype == positions.dtype == torch.int64


def test_left_padding():
    ids, mask, positions = left_padded(SEQUENCES, 2)
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8], [2, 9, 10]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]


def test_the_padding_id_may_be_a_token_of_the_text():
    assert right_padded([[2, 2], [2]], 2).attention_mask.tolist() == [[1, 1], [1, 0]]


def test_width():
    assert right_padded([[5]], 2, width=3).input_ids.tolist() == [[5, 2, 2]]
    with pytest.raises(BadInputError, match="rows of 2 tokens cannot hold a sequence of 3"):
        left_padded([[5, 6, 7]], 2, width=2)


@pytest.mark.parametrize(("sequences", "message"), [([], "at least one sequence"), ([[1], []], "sequence 1 is empty")])
def test_nothing_to_read_is_an_error(sequences, message):
    with pytest.raises(BadInputError, match=message):
        right_padded(sequences, 0)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7))
def test_batches_hold_every_index_once_in_order_of_length(lengths, batch_size):
    batches = length_sorted_batches(lengths, batch_size)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_a_batch_holds_something():
    with pytest.raises(BadInputError, match="batch size 0"):
        length_sorted_batches([1], 0)
