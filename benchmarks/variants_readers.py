"""Variants that edit the maps that read the residual stream (q, k, v, gate, up) instead of those that write it.

What `ridge` is at a writer, at readers: Z the map's inputs without persona, D half of (its output after the good
persona - after the bad one), weighted by disagreement, all maps fitted to the unedited model.

*Front to back*, as `residual_ridge`: D is (output after the good persona - output without persona), with the edits of
all maps in front in place; q, k and v of a layer are fitted together, then its gate and up. q, k and v of
the first layer are left out: they read the token embedding alone, which no persona changes. In `contrastive_decoding`
such edits can take the place of those of all writers but the last.

The tool has no entries for q, k, v and up, so these are tried through hooks only; the paths are those of llama and what
is built alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from alignez_bake.architectures.architecture import LinearSite
from alignez_bake.capture.spec import MomentsSpec, Reading
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.methods.contrastive_decoding import CONTRASTIVE_DECODING
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport
from alignez_bake.methods.residual_ridge import ResidualRidge, recorded_with
from alignez_bake.methods.ridge import Ridge, fit_recorded
from alignez_bake.site import Site
from benchmarks.variants_bed import STRENGTH, Made, fitted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.methods.protocol import CaptureFunction
    from alignez_bake.site import SiteKind
    from benchmarks.variants_bed import VariantBed

READERS: Final[Mapping[SiteKind, str]] = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "mlp_gate": "mlp.gate_proj",
    "mlp_up": "mlp.up_proj",
}
ATTENTION: Final[tuple[SiteKind, ...]] = ("attn_q", "attn_k", "attn_v")
MLP: Final[tuple[SiteKind, ...]] = ("mlp_gate", "mlp_up")


def _kinds(layer: int) -> tuple[SiteKind, ...]:
    return (*ATTENTION, *MLP) if layer else MLP


def with_readers(lm: LanguageModel) -> LanguageModel:
    """The same model, whose readers can be recorded and edited by hooks.

    Raises:
        BadInputError: its first layer has other maps.
    """
    first = lm.architecture.layer_path(0)
    names = {name for name, _ in lm.model.named_modules()}
    for path in READERS.values():
        if f"{first}.{path}" not in names:
            raise BadInputError(f"{lm.architecture.model_type} has no map {path}: its readers are not tried here")
    own = {kind: LinearSite(module=path) for kind, path in READERS.items()}
    return replace(lm, architecture=replace(lm.architecture, sites={**own, **lm.architecture.sites}))


def ridge_at(bed: VariantBed, kinds: Sequence[SiteKind], gamma: float) -> Made:
    """`ridge` at some readers of each layer, one kind after the other.

    Raises:
        BadInputError: as `with_readers` and `fit_ridge`.
    """
    lm = with_readers(bed.lm)
    made = [
        fitted(
            bed,
            Ridge(name=f"ridge at {kind}", kind=kind),
            gamma,
            lm=lm,
            layers=[layer for layer in bed.layers if kind in _kinds(layer)],
        )
        for kind in kinds
    ]
    return Made(lm, EditPlan(tuple(edit for one in made for edit in one.plan.edits)), made[0].pairs)


@dataclass(frozen=True)
class ReaderRidge(ResidualRidge):
    """Front to back at the readers of the layers whose writers are given."""

    name: str = "reader_ridge"

    def imitated(self, capture: CaptureFunction, sites: Sequence[Site], settings: MethodSettings) -> FitResult:
        """The edits of s = 1 in the layers of these sites, in order.

        Raises:
            BadInputError: as `fit_ridge`.
        """
        edits: list[Edit] = []
        reports: list[SiteReport] = []
        for layer in (site.layer for site in sites):
            for kinds in (ATTENTION, MLP) if layer else (MLP,):
                specs = [self._reader_spec(Site(kind, layer)) for kind in kinds]
                statistics = recorded_with(capture, specs, edits)
                for spec in specs:
                    fit, tokens = fit_recorded(
                        statistics, spec, settings, default_rank=self.default_rank, penalty=self.penalty
                    )
                    objective = settings.objective
                    edits.append(Edit(spec.site, left=fit.left, right=fit.right, reads="input", objective=objective))
                    reports.append(SiteReport(spec.site, fit.figures(tokens)))
        return FitResult(tuple(edits), tuple(reports))

    def _reader_spec(self, site: Site) -> MomentsSpec:
        return MomentsSpec(
            site,
            key=Reading("plain", "input"),
            plus=Reading("good", "output"),
            minus=Reading("plain", "output"),
            answer="good",
            weight=self.weight,
            rows_if_fewer=True,
        )


def front_to_back(bed: VariantBed) -> Made:
    """Readers of all layers.

    Raises:
        BadInputError: as `with_readers` and `fit_ridge`.
    """
    lm, method = with_readers(bed.lm), ReaderRidge()
    readings = bed.readings(lm)
    sites = method.sites(lm.architecture, bed.layers)
    found = method.imitated(readings.captures[bed.objective.name], sites, bed.settings)
    return Made(lm, EditPlan(found.edits), readings.filters[bed.objective.name].kept)


def contrastive(bed: VariantBed) -> Made:
    """`contrastive_decoding` with readers in the place of all writers but the last.

    Raises:
        BadInputError: as `with_readers` and the method.
    """
    return fitted(bed, replace(CONTRASTIVE_DECODING, imitation=ReaderRidge()), STRENGTH, lm=with_readers(bed.lm))
