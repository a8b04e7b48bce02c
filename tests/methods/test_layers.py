from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.errors import BadInputError
from alignez_bake.methods.layers import parse_layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("4-20", tuple(range(4, 21))),
        ("3", (3,)),
        ("0", (0,)),
        ("23", (23,)),
        ("7-7", (7,)),
        ("0,2-5", (0, 2, 3, 4, 5)),
        ("5,1", (1, 5)),
        ("1-3,2-4", (1, 2, 3, 4)),
        (" 1 , 3-4 ", (1, 3, 4)),
    ],
)
def test_numbers_and_ranges_include_both_ends(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 24) == layers


@pytest.mark.parametrize(
    "text",
    ["", "24", "0-24", "5-4", "-1", "1-", "a", "1:3", "1,,2", "1-2-3", "1.5", "٣", "9" * 5000, "all", "1 2", "+1"],
)
def test_everything_else_is_refused_with_the_legal_range(text: str) -> None:
    with pytest.raises(BadInputError, match="0-23"):
        parse_layers(text, 24)


@settings(deadline=None)
@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_any_set_of_layers_can_be_written_as_a_list(case: tuple[int, set[int]]) -> None:
    count, layers = case
    assert parse_layers(",".join(map(str, layers)), count) == tuple(sorted(layers))
