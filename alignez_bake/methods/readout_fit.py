"""The low-rank change of the last writer, or of the head, under which the model predicts what it should.

With rows t, of the last layer's writer input z_t, of the residual stream h_t behind that layer, and with
q_t(C) = softmax(head(norm(h_t + Cᵀ z_t))), the change C = R Lᵀ [d_in, d_out] of rank k minimises

    1/n Σ_t [ u_t KL(p*_t ‖ q_t(C)) + (1 - u_t) KL(p_t ‖ q_t(C)) ]  +  λ · mean(diag ZᵀZ) ‖C‖² / Σ_t ‖h_t‖²        (1)

    p*_t   what is to be predicted; u_t in [0, 1]: how much that counts at token t
    p_t    what the base predicts, which is to be kept where u_t is small

Both in nats per token. The last term is an upper bound's worth of the edit: Σ_t ‖Cᵀ z_t‖² for inputs without direction,
relative to the stream's own size, so λ nats for an edit as large as the stream.

Behind the last layer stand a norm and the head alone, so (1) needs no pass through the model: rows of one recording,
and of every step a few products with the head. It is minimised over L and R by L-BFGS with a strong Wolfe line search,
over all rows at once, from the solution of a ridge; nothing is drawn, so the same rows give the same change.

Of the head, whose input is x_t = norm(h_t), the same with z_t = h_t = x_t and q_t(C) = softmax(head(x_t + Cᵀ x_t)).
There a ridge towards the steepest descent is where it starts, `descent_start`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from alignez_bake.capture.statistics import TokenRows
from alignez_bake.errors import BadInputError
from alignez_bake.methods.ridge import fit_ridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from alignez_bake.language_model.readout import Reads
    from alignez_bake.site import Site

    Float32Array = NDArray[np.float32]
    Float64Array = NDArray[np.float64]

_CHUNK_VALUES: Final = 2**24
"""Log-probabilities at a time, 64 MiB where they are float32; some five arrays of them live at once."""
_HISTORY: Final = 20
_START: Final = 0.1


class Aim(NamedTuple):
    """What is to be predicted, in sparse form.

    Attributes:
        tokens: int64 [n, m], the tokens that p* gives a probability.
        probabilities: [n, m], theirs; 0 in unused places; each row sums to 1.
        weights: [n], u_t.
    """

    tokens: torch.Tensor
    probabilities: torch.Tensor
    weights: torch.Tensor


class ReadoutRows(NamedTuple):
    """Rows of one recording, in the readout's dtype and on its device.

    Attributes:
        inputs: [n, d_in], z_t, with all earlier edits in place.
        stream: [n, d], h_t of the same run; of the head what the norm makes of it, as are the others.
        base_stream: [n, d], that of the base.
    """

    inputs: torch.Tensor
    stream: torch.Tensor
    base_stream: torch.Tensor


class ReadoutFit(NamedTuple):
    """What was found.

    Attributes:
        left: float64 [d_out, k], orthonormal columns.
        right: float64 [d_in, k]; C = right leftᵀ, its singular values descending.
        before: Σ u_t KL(p*_t ‖ q_t) / Σ u_t of C = 0, in nats.
        after: the same of C.
        kept: Σ (1 - u_t) KL(p_t ‖ q_t) / Σ (1 - u_t) of C, in nats.
        steps: of L-BFGS.
    """

    left: Float64Array
    right: Float64Array
    before: float
    after: float
    kept: float
    steps: int


def fit_readout(
    site: Site,
    readout: Reads,
    rows: ReadoutRows,
    aim: Aim,
    start: tuple[Float64Array, Float64Array],
    *,
    penalty: float,
    steps: int,
) -> ReadoutFit:
    """Minimise (1) of the module docstring.

    Args:
        site: for messages.
        readout: what stands behind the rows in the model.
        rows: of a recording.
        aim: what is to be predicted there.
        start: L [d_out, k] and R [d_in, k] to begin with, not 0.
        penalty: λ.
        steps: most steps.

    Raises:
        BadInputError: rows or predictions that are not finite.
    """
    size = float(np.sqrt(np.square(start[1]).mean()))
    left = torch.tensor(np.ascontiguousarray(start[0]), dtype=readout.dtype, device=readout.device, requires_grad=True)
    # L-BFGS sees both factors at one scale.
    right = torch.tensor(start[1] / size, dtype=readout.dtype, device=readout.device, requires_grad=True)
    n, d_in = rows.inputs.shape
    per_square = penalty * float(rows.inputs.square().sum()) / d_in / float(rows.stream.square().sum())

    targets = _Targets(readout, rows.base_stream, aim)

    def predicted(part: slice) -> torch.Tensor:
        return readout.log_probabilities(rows.stream[part] + (rows.inputs[part] @ (size * right)) @ left.T)

    def loss() -> float:
        """(1) without what does not depend on C; its gradients are added to those of the factors."""
        total = 0.0
        for part in _parts(n, readout):
            crossed = targets.cross_entropy(part, predicted(part)) / n
            crossed.backward()  # type: ignore[no-untyped-call]
            total += crossed.item()
        # ‖R Lᵀ‖² = tr(RᵀR LᵀL), without the matrix.
        square = per_square * size**2 * ((right.T @ right) * (left.T @ left)).sum()
        square.backward()  # type: ignore[no-untyped-call]
        return total + square.item()

    optimiser = torch.optim.LBFGS(
        [left, right], max_iter=steps, history_size=_HISTORY, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def closure() -> float:
        optimiser.zero_grad()
        return loss()

    with torch.no_grad():
        before = sum(
            (aim.weights[part] * _to_aim(aim, part, readout.log_probabilities(rows.stream[part]))).sum().item()
            for part in _parts(n, readout)
        )
    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        after, kept = targets.divergences(predicted)
    if not np.isfinite([before, after, kept]).all():
        raise BadInputError(f"{site}: the model's predictions are not finite: its weights or its dtype are broken")
    taken = optimiser.state[left].get("n_iter", 0)
    ordered = _ordered(left.detach().cpu().double().numpy(), size * right.detach().cpu().double().numpy())
    return ReadoutFit(*ordered, before=before / float(aim.weights.sum()), after=after, kept=kept, steps=int(taken))


def descent_start(
    site: Site, readout: Reads, rows: ReadoutRows, aim: Aim, *, rank: int, penalty: float, seed: int
) -> tuple[Float64Array, Float64Array]:
    """The reduced-rank ridge towards the steepest descent of u_t KL(p*_t ‖ q_t) at C = 0: L [d_out, k] and R [d_in, k].

    Its size is arbitrary but for its order: the ridge aims at a tenth of the rows' own length.

    Raises:
        BadInputError: as `fit_ridge`; rows that predict what they should already.
    """
    gradients = torch.zeros_like(rows.stream)
    for part in _parts(len(rows.stream), readout):
        stream = rows.stream[part].clone().requires_grad_()
        (aim.weights[part] * _to_aim(aim, part, readout.log_probabilities(stream))).sum().backward()  # type: ignore[no-untyped-call]
        assert stream.grad is not None
        gradients[part] = stream.grad
    length = float(gradients.square().sum().sqrt())
    if not (np.isfinite(length) and length > 0):
        raise BadInputError(f"{site}: no change would bring predictions nearer to what is wanted: gradient {length:g}")
    wanted = -_START * float(rows.stream.square().sum().sqrt()) / length * gradients
    z, d = (each.float().cpu().numpy() for each in (rows.inputs, wanted))
    found = fit_ridge(site, TokenRows(z, d, len(z)), penalty=penalty, rank=rank, seed=seed)
    return found.left, found.right


def _parts(n: int, readout: Reads) -> Iterator[slice]:
    size = max(1, _CHUNK_VALUES // readout.vocabulary_size)
    for first in range(0, n, size):
        yield slice(first, min(n, first + size))


def _to_aim(aim: Aim, part: slice, predicted: torch.Tensor) -> torch.Tensor:
    """KL(p*_t ‖ q_t) in nats [rows of the part]."""
    probabilities = aim.probabilities[part]
    entropy: torch.Tensor = torch.special.entr(probabilities).sum(dim=-1)
    crossed: torch.Tensor = (probabilities * predicted.gather(-1, aim.tokens[part])).sum(dim=-1)
    return -crossed - entropy


class _Targets:
    """What the rows should predict: u_t p*_t + (1 - u_t) p_t. Made once where it has room, else anew each time.

    With its entropy, which no change moves, left out, the loss of a row is the cross entropy -Σ_v target_v log q_v.
    """

    def __init__(self, readout: Reads, base_stream: torch.Tensor, aim: Aim) -> None:
        self._readout = readout
        self._base_stream = base_stream
        self._aim = aim
        self._kept: torch.Tensor | None = None
        if len(base_stream) * readout.vocabulary_size <= _CHUNK_VALUES:
            self._kept = self._made(slice(None))

    def cross_entropy(self, part: slice, predicted: torch.Tensor) -> torch.Tensor:
        """Summed over the part, in nats."""
        target = self._made(part) if self._kept is None else self._kept[part]
        return -torch.dot(target.reshape(-1), predicted.reshape(-1))

    def divergences(self, predicted: Callable[[slice], torch.Tensor]) -> tuple[float, float]:
        """Σ u_t KL(p*_t ‖ q_t) / Σ u_t and Σ (1 - u_t) KL(p_t ‖ q_t) / Σ (1 - u_t), in nats."""
        aimed = kept = 0.0
        for part in _parts(len(self._base_stream), self._readout):
            found, weights, base = predicted(part), self._aim.weights[part], self._base(part)
            aimed += (weights * _to_aim(self._aim, part, found)).sum().item()
            kept += ((1.0 - weights) * (base.exp() * (base - found)).sum(dim=-1)).sum().item()
        total = float(self._aim.weights.sum())
        return aimed / total, kept / max(len(self._base_stream) - total, 1.0)

    def _base(self, part: slice) -> torch.Tensor:
        return self._readout.log_probabilities(self._base_stream[part])

    @torch.no_grad()
    def _made(self, part: slice) -> torch.Tensor:
        weights = self._aim.weights[part][:, None]
        target = self._base(part).exp_().mul_(1.0 - weights)
        return target.scatter_add_(-1, self._aim.tokens[part], weights * self._aim.probabilities[part])


def _ordered(left: Float64Array, right: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The same C = R Lᵀ with orthonormal L, best direction first; the largest entry of each column of L positive."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right)
    u, values, vt = np.linalg.svd(r_right @ r_left.T)
    left, right = q_left @ vt.T, q_right @ (u * values)
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    return left * signs, right * signs
