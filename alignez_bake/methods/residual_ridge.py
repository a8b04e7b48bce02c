"""Residual ridge: the residual stream under the good persona, reached without the persona, layer by layer.

The same tokens, a prompt and the model's own good answer, are read without persona and after each persona's sentence.
Behind layer l let

    g_t, b_t   the residual stream of the base at token t after the good and the bad persona's sentence
    h_t        that of the model without persona, with the edits of the layers in front of l in place
    z_t        the input of the MLP's writer of layer l in the same run

The edit of layer l adds C_lᵀ z_t to the writer's output, and so to h_t. It should take h_t to

    target_t = g_t                           in every layer but the last: what the persona would have made of the stream
    target_t = g_t + (s - 1) (g_t - b_t)     in the last one: with s > 1 beyond it

so C_l is the reduced-rank ridge of `methods.ridge`, problem (1), with Z of rows z_t and D of rows w_t (target_t - h_t),
w_t in [0, 1] the personas' disagreement about the next token (`capture.weights`).

The layers are fitted one after the other, front to back. Fitted all to the unedited model, each edit would again add
what those in front of it have added already, since what a layer's attention reads has moved with them. So what a layer
is left to do is what the layers in front of it could not, and the last one sees all that is missing.

**The strength acts in the last layer alone.** With s = 1 nothing is asked for that the base does not do itself when it
is told to: the damage is small, and the good persona's own mistakes stay. Beyond it the stream leaves what later layers
have been trained on; behind the last one there are none, only the norm and the head. The outcome is the same as with s
in all layers (docs/decisions/residual_ridge.md), and as D is then linear in s, one set of recordings, one a layer,
gives the edits of every strength.

**Texts that are to be left alone**, where there are some, join Z with rows of zeros in D: what an edit does there is
paid for, as much as what it fails to do at the pairs' tokens (docs/decisions/variants.md).

It reads the writer's input, so it folds as W' = W + L Rᵀ. The writer's output must join the residual stream as it is: a
norm behind it (gemma2, gemma3, olmo2) or a factor (granite) is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from alignez_bake.capture.recorder import MapReading
from alignez_bake.capture.spec import MomentsSpec, Reading, Weight
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport
from alignez_bake.methods.ridge import fit_recorded
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.capture.spec import CaptureSpec, Context
    from alignez_bake.capture.statistics import ActivationStatistics
    from alignez_bake.methods.protocol import CaptureFunction

_EDITED: Final[tuple[Context, ...]] = ("plain",)
_GOOD: Final = Reading("good", "output")
_BAD: Final = Reading("bad", "output")


@dataclass(frozen=True)
class ResidualRidge:
    """Reduced-rank ridge at the MLP's writers towards the residual stream under the good persona.

    Figures: `tokens`, `rank`, `explained` (share of ‖D‖²), `contributions` [k], `edit_norm` ‖L Rᵀ‖, `form` (primal or
    dual), `eigenvectors` (full, or how else), and where there is one `eigenvectors_residual`.

    Attributes:
        name: as on the command line.
        default_strength: s, of the last layer; 1 imitates, and a little beyond was no worse on any world tried.
        needs_bias: it makes no constants.
        has_gates: it is linear.
        scores_layers: it edits all layers that are given.
        leaves_texts_alone: where there are some.
        default_rank: k.
        other_rank: of a looser fit, which a search tries.
        other_penalty: λ with it.
        penalty: λ.
        weight: how the rows of D are weighted.
        most_tokens: fit to an even sample of so many tokens where there are more; None: to all.
    """

    name: str = "residual_ridge"
    default_strength: float = 1.125
    needs_bias: bool = False
    has_gates: bool = False
    scores_layers: bool = False
    leaves_texts_alone: bool = True
    default_rank: int = 4
    other_rank: int = 16
    other_penalty: float = 0.003
    penalty: float = 0.01
    weight: Weight | None = "disagreement"
    most_tokens: int | None = None

    @property
    def default_penalty(self) -> float:
        """λ where none is given."""
        return self.penalty

    def sites(self, architecture: Architecture, layers: Sequence[int]) -> list[Site]:
        """The MLP's writer in each layer.

        Raises:
            BadInputError: a mixture of experts, which has no one input, or a writer whose output does not join the
                residual stream as it is.
        """
        if architecture.writer_multiplier is not None:
            raise BadInputError(
                f"residual_ridge cannot be fitted to {architecture.model_type}: what its writers give is multiplied "
                "before it joins the residual stream; use ridge"
            )
        for layer in layers:
            site = Site("mlp_write", layer)
            writer = architecture.linear_site(site.kind, layer)
            if "input" not in writer.legal_reads:
                raise BadInputError(
                    f"residual_ridge cannot be fitted at {site}: every expert has an input of its own; use ridge"
                )
            if writer.post_norm is not None:
                raise BadInputError(
                    f"residual_ridge cannot be fitted at {site}: a norm stands between its output and the residual "
                    "stream; use ridge"
                )
        return [Site("mlp_write", layer) for layer in layers]

    def spec(self, site: Site, strength: float = 1.0, seed: int = 0) -> MomentsSpec:
        """What is recorded at a site: Z, and D as the derivation has it."""
        beyond = strength - 1.0
        return MomentsSpec(
            site,
            key=Reading("plain", "input"),
            plus=_GOOD,
            minus=Reading("plain", "output"),
            answer="good",
            tokens="shared",
            target=Site("residual", site.layer),
            more=((beyond, _GOOD), (-beyond, _BAD)) if beyond else (),
            weight=self.weight,
            rows_if_fewer=True,
            most_tokens=self.most_tokens,
            seed=0 if self.most_tokens is None else seed,
        )

    def fit(
        self, capture: CaptureFunction, architecture: Architecture, layers: Sequence[int], settings: MethodSettings
    ) -> FitResult:
        """One edit a layer, each fitted with those in front of it in place; so each takes a recording of its own.

        Raises:
            BadInputError: as `fit_ridge`.
        """
        strength = self.default_strength if settings.strength is None else settings.strength
        *front, last = self.sites(architecture, sorted(layers))
        imitated = self.imitated(capture, front, settings)
        spec = self.spec(last, strength, settings.seed)
        statistics = recorded_with(capture, [spec], imitated.edits)
        edit, report = self._fitted(statistics, spec, settings, self._left_alone(capture, last, imitated.edits))
        return FitResult((*imitated.edits, edit), (*imitated.sites, report))

    def imitated(self, capture: CaptureFunction, sites: Sequence[Site], settings: MethodSettings) -> FitResult:
        """The edits of s = 1 at sites in order, each fitted with those in front of it in place; once for all strengths.

        Raises:
            BadInputError: as `fit_ridge`.
        """
        settings = replace(settings, strength=None)
        return capture.once((self, tuple(sites), settings), lambda: self._imitated(capture, sites, settings))

    def _imitated(self, capture: CaptureFunction, sites: Sequence[Site], settings: MethodSettings) -> FitResult:
        edits: list[Edit] = []
        reports: list[SiteReport] = []
        for site in sites:
            spec = self.spec(site, seed=settings.seed)
            left_alone = self._left_alone(capture, site, edits)
            edit, report = self._fitted(recorded_with(capture, [spec], edits), spec, settings, left_alone)
            edits.append(edit)
            reports.append(report)
        return FitResult(tuple(edits), tuple(reports))

    @staticmethod
    def _left_alone(capture: CaptureFunction, site: Site, edits: Sequence[Edit]) -> NDArray[np.float32] | None:
        """Z at the tokens of texts that should stay as they are, with the edits in front in place."""
        reading = MapReading(site, "input")
        found = capture.left_alone([reading], EditPlan(tuple(edits)) if edits else None)
        return None if found is None else found[reading]

    def _fitted(
        self,
        statistics: ActivationStatistics,
        spec: MomentsSpec,
        settings: MethodSettings,
        left_alone: NDArray[np.float32] | None,
    ) -> tuple[Edit, SiteReport]:
        fit, tokens = fit_recorded(
            statistics,
            spec,
            settings,
            default_rank=self.default_rank,
            penalty=self.default_penalty,
            left_alone=left_alone,
        )
        edit = Edit(spec.site, left=fit.left, right=fit.right, reads="input", objective=settings.objective)
        return edit, SiteReport(spec.site, fit.figures(tokens))


def recorded_with(
    capture: CaptureFunction, specs: Sequence[CaptureSpec], edits: Sequence[Edit]
) -> ActivationStatistics:
    """What the specs ask for, with the edits in place where no persona speaks."""
    return capture(specs, EditPlan(tuple(edits)) if edits else None, edited=_EDITED)


RESIDUAL_RIDGE: Final = ResidualRidge()
