"""What a fit is told, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from alignez_bake.asked_fit import AskedFit
from alignez_bake.errors import BadInputError
from alignez_bake.fit_settings import FitSettings, check_fit, check_ways, constant_has_home
from alignez_bake.methods.registry import METHODS
from alignez_bake.model_folder import ModelFolder, open_model_folder
from alignez_bake.site import Site


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_tiny) -> ModelFolder:
    """A tiny llama: 2 layers, no biases."""
    return open_model_folder(save_tiny("llama", tmp_path_factory.mktemp("fit") / "base"))


@pytest.fixture(scope="module")
def base_without_homes(tmp_path_factory, save_tiny) -> ModelFolder:
    """A tiny phi3, which has no biases and no equivalent that has."""
    return open_model_folder(save_tiny("phi3", tmp_path_factory.mktemp("fit") / "base"))


@pytest.fixture(scope="module")
def base_with_biases(tmp_path_factory, save_tiny) -> ModelFolder:
    """A tiny gpt2, whose maps all have a bias."""
    return open_model_folder(save_tiny("gpt2", tmp_path_factory.mktemp("fit") / "base"))


def checked(base: ModelFolder, method: str = "alignez_v2", layers: str | None = None, **asked: object) -> FitSettings:
    return check_fit(base, AskedFit(method=method, layers=layers, **asked))


def test_settings_reach_the_method_and_the_record(base: ModelFolder) -> None:
    settings = checked(base, positions="last", gated=True, top_layers=1)
    told = settings.for_objective("harmless")
    assert (told.gated, told.top_layers, told.objective, told.strength, told.rank) == (True, 1, "harmless", None, None)
    assert settings.positions == "last"
    assert settings.as_json() == {
        "strength": 1.0,
        "rank": None,
        "layers": [0, 1],
        "positions": "last",
        "gated": True,
        "top_layers": 1,
    }


def test_a_number_of_layers_may_come_as_text(base: ModelFolder) -> None:
    assert checked(base, top_layers="2").top_layers == 2
    assert checked(base, "ccs", top_layers="auto").for_objective(None).top_layers == "auto"


def test_what_was_not_asked_for_is_not_in_the_record(base: ModelFolder) -> None:
    assert checked(base, "ridge").as_json() == {"strength": 2.0, "rank": None, "layers": [0, 1]}


@pytest.mark.parametrize(
    ("method", "asked", "says"),
    [
        ("ridge", {"positions": "first"}, "positions 'first' is unknown: use one of all, last"),
        (
            "ridge",
            {"gated": True},
            "method 'ridge' has no gates, so --gated means nothing for it: use it with alignez_v2",
        ),
        ("alignez_v1", {"gated": True}, "'alignez_v1' has no gates"),
        ("shift", {"top_layers": 1}, "'shift' does not score layers, so --top-layers means nothing"),
        ("alignez_v2", {"top_layers": 0}, "top layers 0 is not possible"),
        ("alignez_v2", {"top_layers": 3}, "top layers 3 is not possible: only 2 layers may be edited"),
        ("alignez_v2", {"top_layers": 2, "layers": "1"}, "top layers 2 is not possible: only 1 layers may be edited"),
        ("ccs", {"top_layers": "-1"}, "top layers '-1' is neither a number of layers nor auto"),
        ("ridge", {"top_layers": "auto"}, "'ridge' does not score layers, so --top-layers means nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(base: ModelFolder, method: str, asked: dict, says: str) -> None:
    with pytest.raises(BadInputError) as caught:
        checked(base, method, **asked)
    assert says in str(caught.value)


@pytest.mark.parametrize("method", list(METHODS))
def test_last_is_for_every_method(base: ModelFolder, method: str) -> None:
    assert checked(base, method, positions="last").positions == "last"


@pytest.mark.parametrize(
    ("method", "asked", "says"),
    [
        ("alignez_v2", {"gated": True}, "--gated: the gates of method 'alignez_v2' cannot be folded"),
        ("ridge", {"positions": "last"}, "--positions last: weights edit every position"),
        ("shift", {}, "method 'shift' adds a constant, which needs a bias, and "),
    ],
)
def test_what_needs_a_module_is_refused_without_code_and_passes_with_it(
    base_without_homes: ModelFolder, method: str, asked: dict, says: str
) -> None:
    base = base_without_homes
    settings = checked(base, method, **asked)
    with pytest.raises(BadInputError) as caught:
        check_ways(settings, base, code=False)
    assert says in str(caught.value)
    assert "--trust-remote-code, which writes a checkpoint with a small code file of its own" in str(caught.value)
    check_ways(settings, base, code=True)


@pytest.mark.parametrize("method", ["ridge", "alignez_v1", "alignez_v2", "ccs", "mean_difference"])
def test_what_folds_passes(base: ModelFolder, method: str) -> None:
    check_ways(checked(base, method), base, code=False)


def test_a_constant_is_at_home_where_there_is_a_bias_or_an_equivalent_model_has_one(
    base: ModelFolder, base_with_biases: ModelFolder, base_without_homes: ModelFolder
) -> None:
    site = Site("mlp_write", 0)
    assert not constant_has_home(base_without_homes, site)
    for at_home in (base, base_with_biases):
        assert constant_has_home(at_home, site)
        check_ways(checked(at_home, "shift"), at_home, code=False)
    with pytest.raises(BadInputError, match=r"mlp_write\.0, mlp_write\.1: allow it with --trust-remote-code"):
        check_ways(checked(base_without_homes, "shift"), base_without_homes, code=False)
