"""Which neutral texts a choice shows to the fits, and which ones measure."""

from __future__ import annotations

import pytest

from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.registry import METHODS
from alignez_bake.prompts.objective import Objective
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.tuning import tuned_fit
from alignez_bake.tuning.candidate import Candidate
from alignez_bake.tuning.neutral import shipped_neutral_texts
from alignez_bake.tuning.offered import TuneSettings
from tests.tiny_models import tiny_tokenizer

LINES = [f"Rain in the north, {number} mm." for number in range(7)]


class StoppedError(Exception):
    """Ends a choice once it is known what it would read."""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """`asked(lines, *methods)`: what the fits would see, and what would measure."""
    seen = {}

    def opened(*_args, left_alone, **_settings):
        seen["fits"] = list(left_alone)
        return type("Readings", (), {"captures": {"kind": None}})()

    def chosen(*_args, neutral_texts, **_settings):
        seen["measured"] = list(neutral_texts)
        raise StoppedError

    monkeypatch.setattr(tuned_fit, "read_pairs_of", opened)
    monkeypatch.setattr(tuned_fit, "tune", chosen)

    def asked(lines, *methods):
        path = None
        if lines is not None:
            path = tmp_path / "neutral.txt"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        candidates = tuple(Candidate(name, METHODS[name], MethodSettings(), (0, 1)) for name in methods)
        with pytest.raises(StoppedError):
            tuned_fit.tune_edits(
                None,
                (),
                (Objective("kind", "kind", "rude"),),
                prompt_form(tiny_tokenizer(bos=False), "{query}"),
                TuneSettings(candidates, (), None, path, 0),
                held_out=(),
                weights={"kind": 1.0},
                batch_size=1,
                state_path=None,
                progress=None,
            )
        return seen["fits"], seen["measured"]

    return asked


def test_every_second_text_of_the_users_own_is_seen_by_the_fits(asked):
    assert asked(LINES, "contrastive_decoding", "ridge") == (LINES[::2], LINES[1::2])
    assert asked(LINES, "residual_ridge") == (LINES[::2], LINES[1::2])


def test_all_measure_where_no_method_leaves_texts_alone(asked):
    assert asked(LINES, "ridge", "mean_difference") == ([], LINES)


def test_a_single_text_measures(asked):
    assert asked(LINES[:1], "contrastive_decoding") == ([], LINES[:1])


def test_shipped_texts_measure_alone(asked):
    assert asked(None, "contrastive_decoding") == ([], shipped_neutral_texts())
