"""Contrastive decoding of the two personas, baked: what the good persona would say, and the bad one would not.

In every layer but the last, the edits are those of `methods.residual_ridge` with s = 1: the residual stream comes to
where it would be after the good persona's sentence. In the last one, a change of the MLP's writer makes the model
predict, behind each token t, not what the good persona predicts but what sets it apart:

    p*_t(v) ∝ p_good(v)^s · (p_good(v) / p_bad(v))^(s - 1)     for v in T_t, else 0                               (1)
    T_t = the at most m likeliest v with p_good(v) >= α · max p_good

p_good and p_bad are the base's own predictions at that token after either persona's sentence. The second factor is
contrastive decoding (Li et al., arXiv 2210.15097) with the bad persona as the amateur, also DExperts (Liu et al., arXiv
2105.03023) with personas as experts; T_t is its plausibility constraint; the first factor sharpens. With s = 1 what is
left is the good persona's prediction without its tail.

Behind that writer stands a norm, so no change of it makes the stream longer and the predictions as sure as they should
be. So the head is changed as well, by what is still missing, if it is a map of its own and not the token embedding's
weight, or may become one. It reads what the norm gives, x_t: logits = H x_t becomes H (x_t + L Rᵀ x_t), so
H' = H + (H L) Rᵀ.

How both changes are found is derived in `methods.readout_fit`. What it counts at a token, u_t there:

    1        where a token of the answer, or its end, comes next
    w_t      in front of it, the personas' disagreement about the next token (`capture.weights`)

and to the rest, 1 - u_t, the base's own prediction is the aim. So it is at every token of texts that are to be left
alone, where there are some: an even sample of them, of at most two thirds as many tokens as the pairs have.

**Why not the stream itself.** `residual_ridge` with s > 1 leads the stream beyond the good persona along a difference
of streams, which raises whatever the good persona likes better, also tokens that neither would say; and behind the norm
nothing can grow but at the cost of the rest. In one world that helps, in another one it destroys the model. (1) has no
such direction: what is not plausible under the good persona is no aim at any s
(docs/decisions/contrastive_decoding.md).

The edits read the writers' inputs, so they fold as W' = W + L Rᵀ, exactly as those of residual_ridge.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from alignez_bake.capture.recorder import MapReading
from alignez_bake.capture.spec import Reading, RowsSpec
from alignez_bake.capture.statistics import TokenRows
from alignez_bake.capture.weights import disagreement_weights, jensen_shannon
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport
from alignez_bake.methods.readout_fit import Aim, ReadoutRows, descent_start, fit_readout
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE, ResidualRidge, recorded_with
from alignez_bake.methods.ridge import fit_ridge
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.capture.statistics import Rows
    from alignez_bake.language_model.readout import Readout
    from alignez_bake.methods.protocol import CaptureFunction, JsonValue
    from alignez_bake.methods.readout_fit import ReadoutFit

    Float32Array = NDArray[np.float32]
    Float64Array = NDArray[np.float64]

HEAD: Final = Site("lm_head")
_TIED: Final = (
    "the head is tied to the token embedding and stays as it is; --untie makes it a tensor of its own, as large as the "
    "embedding, so that contrastive_decoding can change it too"
)
_ROWS_AT_A_TIME: Final = 256
_LEFT_ALONE_SHARE: Final = Fraction(2, 3)


@dataclass(frozen=True)
class ContrastiveDecoding:
    """Residual ridge up to the last layer, and there and in the head a change that decodes contrastively.

    Figures: those of residual_ridge, and in the last layer and the head `tokens`, `rank`, `divergence_before` and
    `divergence_after` (nats, KL(p* ‖ q) per counted token), `kept` (nats, KL from the base per token that is to be
    kept), `edit_norm` ‖L Rᵀ‖, `steps`.

    Attributes:
        name: as on the command line.
        default_strength: s; 1 imitates the good persona.
        needs_bias: it makes no constants.
        has_gates: it is linear.
        scores_layers: it edits all layers that are given.
        leaves_texts_alone: where there are some.
        needs_last_layer: behind it predictions are read out.
        default_rank: k, in the last layer and in the head; the layers in front have at most `imitation`'s own.
        other_rank: of a looser fit, which a search tries.
        other_penalty: the last fit's λ with it.
        penalty: λ of `readout_fit` in the last layer.
        head_penalty: the same of the head, which is what settings can turn; None: the head stays as it is, and the last
            layer's λ can be turned.
        plausible: α.
        most_plausible: m.
        most_tokens: fit to an even sample of so many tokens where there are more.
        steps: most steps of the fit in the last layer.
        imitation: how the other layers are fitted; to a sample of tokens, since moments of the inputs of an 8 B model's
            MLP would take 5 GB to solve.
    """

    name: str = "contrastive_decoding"
    default_strength: float = 2.0
    needs_bias: bool = False
    has_gates: bool = False
    scores_layers: bool = False
    leaves_texts_alone: bool = True
    needs_last_layer: bool = True
    default_rank: int = 64
    other_rank: int = 128
    other_penalty: float = 0.01
    penalty: float = 0.01
    head_penalty: float | None = 0.03
    plausible: float = 0.05
    most_plausible: int = 64
    most_tokens: int = 2048
    steps: int = 20
    imitation: ResidualRidge = field(default=replace(RESIDUAL_RIDGE, most_tokens=6144))

    @property
    def default_penalty(self) -> float:
        """λ of the last fit where none is given."""
        return self.penalty if self.head_penalty is None else self.head_penalty

    def sites(self, architecture: Architecture, layers: Sequence[int]) -> list[Site]:
        """The MLP's writer in each layer.

        Raises:
            BadInputError: as `ResidualRidge.sites`, with this method's name.
        """
        try:
            return self.imitation.sites(architecture, layers)
        except BadInputError as error:
            raise BadInputError(str(error).replace(self.imitation.name, self.name, 1)) from error

    def fit(
        self, capture: CaptureFunction, architecture: Architecture, layers: Sequence[int], settings: MethodSettings
    ) -> FitResult:
        """One edit a layer, each fitted with those in front of it in place, and one of the head unless it stays tied.

        Raises:
            BadInputError: as `fit_ridge` and `fit_readout`; layers without the model's last one; a model that reads out
                otherwise than by a norm and a head.
        """
        readout = capture.readout()
        *front, last = self.sites(architecture, sorted(layers))
        if last.layer != readout.last_layer:
            raise BadInputError(
                f"{self.name} changes what is read out behind layer {readout.last_layer}, the model's last one, and "
                f"only layers up to {last.layer} may be edited: let --layers end there, or use residual_ridge"
            )
        head = None if self.head_penalty is None or (readout.tied and not settings.untie) else readout.head
        imitating = self._imitating(settings)
        imitated = self.imitation.imitated(capture, front, imitating)
        recording = capture.once(
            ("rows", self, last, tuple(front), imitating),
            lambda: self._recording(capture, last, imitated.edits, settings.seed, readout),
        )
        # λ is that of the last fit.
        of_writer = settings if head is None else replace(settings, penalty=None)
        aim, fit = capture.once(
            ("writer", self, last, tuple(front), of_writer), lambda: self._writer(last, recording, readout, of_writer)
        )
        found = [_found(last, fit, fit.left, recording, settings)]
        if head is not None:
            rows, penalty = recording.behind_norm(readout, fit), settings.penalty or self.default_penalty
            begin = descent_start(HEAD, head, rows, aim, rank=fit.left.shape[1], penalty=penalty, seed=settings.seed)
            fit = fit_readout(HEAD, head, rows, aim, begin, penalty=penalty, steps=self.steps)
            found.append(_found(HEAD, fit, head.times(fit.left), recording, settings))
        edits, reports = zip(*found, strict=True)
        notes = (_TIED,) if head is None and self.head_penalty is not None else ()
        return FitResult((*imitated.edits, *edits), (*imitated.sites, *reports), notes)

    def _imitating(self, settings: MethodSettings) -> MethodSettings:
        """What the layers in front are told: no more than the imitation's own rank, which more gained nothing there."""
        small = settings.rank is not None and settings.rank < self.imitation.default_rank
        return MethodSettings(rank=settings.rank if small else None, seed=settings.seed, objective=settings.objective)

    def _writer(
        self, last: Site, recording: _Recording, readout: Readout, settings: MethodSettings
    ) -> tuple[Aim, ReadoutFit]:
        """The change of the last writer, and what it aims at."""
        rank = settings.rank or min(self.default_rank, *recording.widths)
        if rank > min(recording.widths):
            d_out, d_in = recording.widths
            raise BadInputError(f"{last}: rank {rank} is not possible: its map is {d_out} x {d_in}")
        strength = self.default_strength if settings.strength is None else settings.strength
        aim = recording.aim(readout, strength, plausible=self.plausible, most=self.most_plausible)
        start = recording.start(last, rank, self.imitation.penalty, settings.seed)
        penalty = settings.penalty or self.penalty
        return aim, fit_readout(last, readout, recording.rows, aim, start, penalty=penalty, steps=self.steps)

    def _recording(
        self, capture: CaptureFunction, last: Site, edits: Sequence[Edit], seed: int, readout: Readout
    ) -> _Recording:
        """Everything that is read in the last layer, on the readout's device."""
        stream = Site("residual", last.layer)

        def spec(site: Site, reading: Reading) -> RowsSpec:
            return RowsSpec(site, reading, "good", "shared", most_tokens=self.most_tokens, seed=seed)

        inputs, edited = spec(last, Reading("plain", "input")), spec(stream, Reading("plain", "output"))
        good, bad = (spec(stream, Reading(persona, "output")) for persona in ("good", "bad"))
        # Of the base by itself, so that a capture that remembers has it for every choice of layers.
        base = capture([edited, good, bad]).rows
        found = recorded_with(capture, [inputs, edited], edits).rows

        def tensor(rows: Rows) -> torch.Tensor:
            if not np.isfinite(rows.values).all():
                raise BadInputError(f"{last}: activations are not finite: the model's weights or its dtype are broken")
            return torch.tensor(rows.values, dtype=readout.dtype, device=readout.device)

        streams = tuple(tensor(base[each]) for each in (good, bad))
        divergences = [
            jensen_shannon(*(readout.log_probabilities(each[first : first + _ROWS_AT_A_TIME]) for each in streams))
            for first in range(0, len(streams[0]), _ROWS_AT_A_TIME)
        ]
        weights = disagreement_weights([torch.cat(divergences).double().cpu().numpy()])[0]
        predicts_answer = found[inputs].predicts_answer
        assert predicts_answer is not None
        recording = _Recording(
            ReadoutRows(tensor(found[inputs]), tensor(found[edited]), tensor(base[edited])),
            good=streams[0],
            bad=streams[1],
            counted=torch.tensor(np.maximum(weights, predicts_answer), dtype=readout.dtype, device=readout.device),
        )
        read, put_out = MapReading(last, "input"), MapReading(stream, "output")
        left_alone = capture.left_alone([read, put_out], EditPlan(tuple(edits)) if edits else None)
        of_base = left_alone if not edits else capture.left_alone([put_out])
        if left_alone is None or of_base is None:
            return recording
        return recording.followed_by(left_alone[read], left_alone[put_out], of_base[put_out])


class _Recording(NamedTuple):
    """Rows of the last layer.

    Attributes:
        rows: those without persona.
        good: stream after the good persona's sentence [n, d].
        bad: the same of the bad one.
        counted: u_t [n].
    """

    rows: ReadoutRows
    good: torch.Tensor
    bad: torch.Tensor
    counted: torch.Tensor

    def followed_by(self, inputs: Float32Array, edited: Float32Array, base: Float32Array) -> _Recording:
        """With rows of texts that are to be left alone, at most two thirds as many, evenly: u_t is 0 at all of them."""
        most = max(1, int(len(self.counted) * _LEFT_ALONE_SHARE))
        rows = np.linspace(0, len(inputs) - 1, min(most, len(inputs))).round().astype(np.int64)

        def joined(mine: torch.Tensor, more: Float32Array) -> torch.Tensor:
            return torch.cat([mine, torch.tensor(more[rows], dtype=mine.dtype, device=mine.device)])

        # The base says what it says after no persona: there is nothing to aim at, so any aim will do.
        return _Recording(
            ReadoutRows(
                joined(self.rows.inputs, inputs), joined(self.rows.stream, edited), joined(self.rows.base_stream, base)
            ),
            good=joined(self.good, base),
            bad=joined(self.bad, base),
            counted=torch.cat([self.counted, self.counted.new_zeros(len(rows))]),
        )

    @property
    def widths(self) -> tuple[int, int]:
        """(d_out, d_in) of the writer."""
        return self.rows.stream.shape[1], self.rows.inputs.shape[1]

    def aim(self, readout: Readout, strength: float, *, plausible: float, most: int) -> Aim:
        """p* of equation (1) of the module docstring, on T_t alone."""
        tokens, probabilities = [], []
        with torch.no_grad():
            for first in range(0, len(self.good), _ROWS_AT_A_TIME):
                good, bad = (
                    readout.log_probabilities(each[first : first + _ROWS_AT_A_TIME]) for each in (self.good, self.bad)
                )
                likeliest = good.topk(min(most, good.shape[-1]), dim=-1)
                bad = bad.gather(-1, likeliest.indices)
                wanted = strength * likeliest.values + (strength - 1.0) * (likeliest.values - bad)
                in_set = likeliest.values >= likeliest.values[:, :1] + float(np.log(plausible))
                tokens.append(likeliest.indices)
                probabilities.append(wanted.masked_fill(~in_set, -torch.inf).softmax(dim=-1))
        return Aim(torch.cat(tokens), torch.cat(probabilities), self.counted)

    @torch.no_grad()
    def behind_norm(self, readout: Readout, last: ReadoutFit) -> ReadoutRows:
        """What the head reads, with the last writer's change in place."""
        left, right = (
            torch.tensor(each, dtype=readout.dtype, device=readout.device) for each in (last.left, last.right)
        )
        normed = readout.normed(self.rows.stream + (self.rows.inputs @ right) @ left.T)
        return ReadoutRows(normed, normed, readout.normed(self.rows.base_stream))

    def start(self, last: Site, rank: int, penalty: float, seed: int) -> tuple[Float64Array, Float64Array]:
        """L and R of the reduced-rank ridge towards the good persona's stream, as `ResidualRidge` would have them."""
        moved = self.counted[:, None] * (self.good - self.rows.stream)
        z, d = (each.float().cpu().numpy() for each in (self.rows.inputs, moved))
        found = fit_ridge(last, TokenRows(z, d, len(z)), penalty=penalty, rank=rank, seed=seed)
        return found.left, found.right


def _found(
    site: Site, fit: ReadoutFit, left: Float64Array, recording: _Recording, settings: MethodSettings
) -> tuple[Edit, SiteReport]:
    edit = Edit(site, left=left, right=fit.right, reads="input", objective=settings.objective)
    return edit, SiteReport(site, _figures(fit, len(recording.rows.stream)))


def _figures(fit: ReadoutFit, tokens: int) -> dict[str, JsonValue]:
    return {
        "tokens": tokens,
        "rank": fit.left.shape[1],
        "divergence_before": fit.before,
        "divergence_after": fit.after,
        "kept": fit.kept,
        "edit_norm": float(np.linalg.norm(fit.right)),
        "steps": fit.steps,
    }


CONTRASTIVE_DECODING: Final = ContrastiveDecoding()
