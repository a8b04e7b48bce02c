"""What a refit gives: a new plan, and for each edit that it changed how much of the effect is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.site import Site

Kind = Literal["linearised", "block"]


@dataclass(frozen=True)
class Explained:
    """How well a fit f_t stands for the truth v_t over n tokens; the vectors are effects or pre-activations.

    Attributes:
        uncentred: 1 - Σ‖v_t - f_t‖² / Σ‖v_t‖². Doing nothing (f = 0) scores 0, and a fit can be worse than that.
            None where every v_t is zero: there is nothing to explain.
        centred: 1 - Σ‖v_t - f_t‖² / Σ‖v_t - mean v‖². Adding the mean everywhere scores 0: what is explained of
            how the effect depends on the token. None where v does not depend on it.
        rms: root of the mean over tokens of ‖v_t‖².
        residual_rms: the same of v_t - f_t.
        tokens: n.
    """

    uncentred: float | None
    centred: float | None
    rms: float
    residual_rms: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "explained_variance": self.uncentred,
            "explained_variance_centred": self.centred,
            "rms": self.rms,
            "residual_rms": self.residual_rms,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class RefitReport:
    """One edit that was refitted.

    Effects are all that an edit adds to its site, strength · (L g(Rᵀ r + s) + c), whatever the dial of its
    objective. They are measured where the model runs with the edits of the plan before the refit.

    Attributes:
        index: place of the edit in the plan.
        site: its site.
        kind: `linearised` or `block`.
        rank: of the new edit.
        constant: whether the new edit adds a constant, which needs a bias.
        held_out: the effect at the tokens that were not fitted.
        fitted: the effect at the tokens that were.
        pre_activation_held_out: of `block`: t = Rᵀ r + s, which is what was fitted, at the tokens that were not.
        pre_activation_fitted: the same at those that were.
    """

    index: int
    site: Site
    kind: Kind
    rank: int
    constant: bool
    held_out: Explained
    fitted: Explained
    pre_activation_held_out: Explained | None = None
    pre_activation_fitted: Explained | None = None

    @property
    def explained_variance(self) -> float | None:
        """Share of the effect's energy that is kept at held-out tokens, uncentred; None where the effect is zero."""
        return self.held_out.uncentred

    @property
    def explained_variance_fitted(self) -> float | None:
        """The same at the tokens that were fitted."""
        return self.fitted.uncentred

    @property
    def tokens(self) -> int:
        """Number of tokens that were fitted."""
        return self.fitted.tokens

    @property
    def held_out_tokens(self) -> int:
        """Number of tokens that were not."""
        return self.held_out.tokens

    def to_json(self) -> dict[str, Any]:
        """JSON values; the pre-activation's only where it was what was fitted."""
        parts: dict[str, Any] = {
            "index": self.index,
            "site": str(self.site),
            "kind": self.kind,
            "rank": self.rank,
            "constant": self.constant,
            "explained_variance": self.explained_variance,
            "explained_variance_fitted": self.explained_variance_fitted,
            "tokens": self.tokens,
            "held_out_tokens": self.held_out_tokens,
            "held_out": self.held_out.to_json(),
            "fitted": self.fitted.to_json(),
        }
        for name, part in (("held_out", self.pre_activation_held_out), ("fitted", self.pre_activation_fitted)):
            if part is not None:
                parts[f"pre_activation_{name}"] = part.to_json()
        return parts


@dataclass(frozen=True, eq=False)
class Refit:
    """The plan with its refitted edits, each at the place of its original, and a report for each of them.

    Attributes:
        plan: as before where nothing had to be refitted; else its provenance has the reports under `refits`.
        reports: in the order of the plan; edits that stay as they were have none.
    """

    plan: EditPlan
    reports: tuple[RefitReport, ...]
