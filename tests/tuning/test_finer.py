"""What is tried beside the best candidate, and that nothing changes which the user has fixed."""

from dataclasses import replace

from alignez_bake.methods.contrastive_decoding import CONTRASTIVE_DECODING
from alignez_bake.methods.mean_difference import MEAN_DIFFERENCE
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.tuning.candidate import Candidate
from alignez_bake.tuning.finer import FinerRungs

DECODING = Candidate("cd-1.5", CONTRASTIVE_DECODING, MethodSettings(strength=1.5, seed=4), (0, 1, 2, 3))
OF_RIDGE = Candidate("ridge-2", RIDGE, MethodSettings(strength=2.0), (0, 1, 2), "last")
STRENGTHS = {"contrastive_decoding": (1.5, 2.5), "ridge": (2.0, 1.0, 3.0)}


def test_each_differs_in_strength_layers_or_what_bounds_the_fit():
    found = FinerRungs(STRENGTHS).beside(DECODING)
    settings = DECODING.settings
    assert found == [
        replace(DECODING, name="cd-1.5-layer3", layers=(3,)),
        replace(DECODING, name="contrastive_decoding-2.5", settings=replace(settings, strength=2.5)),
        replace(DECODING, name="cd-1.5-rank128-penalty0.01", settings=replace(settings, rank=128, penalty=0.01)),
    ]


def test_a_method_that_does_not_read_out_keeps_the_upper_half():
    names = [each.name for each in FinerRungs(STRENGTHS).beside(OF_RIDGE)]
    assert names == ["ridge-2-layers1to2", "ridge-1", "ridge-3", "ridge-2-rank16-penalty0.003"]
    assert {each.positions for each in FinerRungs(STRENGTHS).beside(OF_RIDGE)} == {"last"}


def test_what_the_user_has_fixed_stays():
    fixed = FinerRungs(STRENGTHS, rank=False, penalty=False, layers=False)
    assert [each.name for each in fixed.beside(DECODING)] == ["contrastive_decoding-2.5"]
    assert FinerRungs(rank=False, penalty=False, layers=False).beside(DECODING) == []
    of_rank = replace(DECODING, settings=replace(DECODING.settings, rank=3))
    (looser,) = FinerRungs(rank=False, layers=False).beside(of_rank)
    assert looser == replace(of_rank, name="cd-1.5-penalty0.01", settings=replace(of_rank.settings, penalty=0.01))
    (wider,) = FinerRungs(penalty=False, layers=False).beside(DECODING)
    assert wider == replace(DECODING, name="cd-1.5-rank128", settings=replace(DECODING.settings, rank=128))


def test_what_a_method_has_not_is_not_varied():
    one_layer = Candidate("difference", MEAN_DIFFERENCE, MethodSettings(strength=1.0), (2,))
    assert FinerRungs(STRENGTHS).beside(one_layer) == []
