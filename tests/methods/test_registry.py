from __future__ import annotations

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.registry import METHODS, method_named


def test_every_method_is_found_by_its_own_name() -> None:
    assert set(METHODS) == {
        "ridge", "residual_ridge", "contrastive_decoding", "alignez_v1", "alignez_v2", "ccs", "mean_difference", "shift"
    }  # fmt: skip
    assert all(method_named(name).name == name for name in METHODS)


def test_defaults_are_those_that_users_are_told() -> None:
    assert {name: method.default_strength for name, method in METHODS.items()} == {
        "ridge": 2.0,
        "residual_ridge": 1.125,
        "contrastive_decoding": 2.0,
        "alignez_v1": 1.0,
        "alignez_v2": 1.0,
        "ccs": 1.0,
        "mean_difference": 1.0,
        "shift": 1.0,
    }
    assert [name for name, method in METHODS.items() if method.needs_bias] == ["shift"]


def test_unknown_methods_are_refused_by_name() -> None:
    with pytest.raises(BadInputError, match="'Ridge' is unknown: use one of ridge, "):
        method_named("Ridge")


@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_below_one_are_refused(rank: int) -> None:
    with pytest.raises(BadInputError, match=f"rank {rank} "):
        MethodSettings(rank=rank)
