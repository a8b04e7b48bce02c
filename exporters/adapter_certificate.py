"""Level `tensors` of an adapter: every pair is the formula's, and nothing else is in its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from alignez_bake.exporters.adapter_pairs import adapter_layout
from alignez_bake.exporters.peft_files import (
    BASE_NAME_KEY,
    BASE_REVISION_KEY,
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_of,
    decode_pair,
    stored_shapes,
)

from alignez_bake.certificate.verdict import lowest_share, tensors_json
from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.file_access import read_tensor
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.strict_json import parse_object

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.exporters.adapter_pairs import AdapterLayout, Pair
    from numpy.typing import NDArray

    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.safetensors_io.header import Header

    Float64Array = NDArray[np.float64]

# Factors are rounded to float32 once, each by at most 2⁻²⁴ of itself.
TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class Delivery:
    """How much of the edits of a module its stored pair holds.

    Attributes:
        name: path of the module.
        share: <stored, formula> / ‖formula‖², over B A and β together; None if the formula adds nothing.
        residual: ‖stored - formula‖ / ‖formula‖, likewise.
        error: the larger of ‖Δ(B A)‖ / ‖B A‖ and ‖Δβ‖ / ‖β‖; where the formula's is zero, the size of what is stored.
    """

    name: str
    share: float | None
    residual: float | None
    error: float


@dataclass(frozen=True)
class AdapterCertificate:
    """What a comparison of an adapter with the formula found.

    Attributes:
        verdict: `failed` where a pair is not the formula's or a file holds more or less than it must; `inconclusive`
            where the formula changes nothing; else `passed`.
        reasons: one line each for what went wrong.
        deliveries: one a module.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    deliveries: tuple[Delivery, ...]
    level: Level = field(default="tensors", init=False)

    @property
    def lowest_share(self) -> float | None:
        """The smallest delivered share; None if nothing is added."""
        return lowest_share(entry.share for entry in self.deliveries)

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values; no tensor of the base is in an adapter."""
        figures = tensors_json(self, edited=len(self.deliveries), untouched=0, lowest_delivered_share=self.lowest_share)
        return {**figures, "tolerance": TOLERANCE, "tensors": [asdict(entry) for entry in self.deliveries]}


def certify_adapter(base: ModelFolder, lowering: Lowering, out: Path, progress: Progress) -> AdapterCertificate:
    """Compare an adapter on disk with the formula.

    Args:
        base: the base model.
        lowering: how the edits went in.
        out: the adapter's folder.
        progress: counts modules.

    Raises:
        BadInputError: a file that is missing or damaged.
    """
    layout = adapter_layout(base, lowering)
    header = read_header(out / WEIGHTS_FILE)
    reasons = [*_config_reasons(base, layout, out), *_name_reasons(layout, header)]
    deliveries: list[Delivery] = []
    with progress.task("comparing pairs", len(layout.modules)) as advance:
        for module in () if reasons else layout.modules:
            advance()
            names = stored_shapes(module, layout.rank, constants=layout.constants)
            stored = decode_pair(
                module, {name: read_tensor(header, header.entries[name]) for name in names}, layout.rank
            )
            found = compare_pairs(stored, module.pair(layout.rank, base.tensors))
            deliveries.append(Delivery(module.path, *found))
            if not found.error <= TOLERANCE:
                reasons.append(
                    f"{module.path}: what its pair adds is off the formula by {found.error:.1e} of its size, "
                    f"bound {TOLERANCE:.0e}"
                )
    moves = any(entry.share is not None for entry in deliveries)
    verdict: Verdict = "failed" if reasons else "passed"
    if not reasons and not moves:
        verdict, reasons = "inconclusive", ["the edits change nothing, so nothing shows that they were applied"]
    return AdapterCertificate(verdict, tuple(reasons), tuple(deliveries))


class Comparison(NamedTuple):
    """How close a stored pair is to the formula; the figures of `Delivery`."""

    share: float | None
    residual: float | None
    error: float


def compare_pairs(stored: Pair, exact: Pair) -> Comparison:
    """Compare what two pairs add, without ever forming a product B A, which is as large as a weight.

    <B₁ A₁, B₂ A₂> = Σ (B₁ᵀ B₂) ∘ (A₁ A₂ᵀ), and ‖X Y‖ = ‖Rx Ryᵀ‖ with the triangles of X = Qx Rx and Yᵀ = Qy Ry; so
    that of the difference X = [B₁, -B₂], Y = [A₁; A₂] is exact to rounding, which a sum of squares is not.
    """
    product = _product_norm(exact.b_matrix, exact.a_matrix)
    difference = _product_norm(
        np.concatenate([stored.b_matrix, -exact.b_matrix], axis=2),
        np.concatenate([stored.a_matrix, exact.a_matrix], axis=1),
    )
    constant, constant_off = (float(np.linalg.norm(part)) for part in (exact.bias, stored.bias - exact.bias))
    error = max(difference / (product or 1.0), constant_off / (constant or 1.0))
    total = float(np.hypot(product, constant))
    if total == 0.0:
        return Comparison(None, None, error)
    overlap = float(
        np.sum((stored.b_matrix.swapaxes(1, 2) @ exact.b_matrix) * (stored.a_matrix @ exact.a_matrix.swapaxes(1, 2)))
    ) + float(stored.bias @ exact.bias)
    return Comparison(overlap / total**2, float(np.hypot(difference, constant_off)) / total, error)


def _product_norm(left: Float64Array, right: Float64Array) -> float:
    """‖left @ right‖ of a stack of products [experts, d_out, r] @ [experts, r, d_in]."""
    left_triangle, right_triangle = np.linalg.qr(left).R, np.linalg.qr(right.swapaxes(1, 2)).R
    return float(np.linalg.norm(left_triangle @ right_triangle.swapaxes(1, 2)))


def _config_reasons(base: ModelFolder, layout: AdapterLayout, out: Path) -> list[str]:
    file = out / CONFIG_FILE
    if not file.is_file():
        raise BadInputError(f"{out} is no adapter: it has no {CONFIG_FILE}")
    found = parse_object(file.read_bytes(), str(file))
    # The base may be named in another way by whoever passes the adapter on.
    expected = config_of(base, layout, "")
    compared = (set(found) | set(expected)) - {BASE_NAME_KEY, BASE_REVISION_KEY}
    differing = sorted(key for key in compared if found.get(key) != expected.get(key))
    return [f"{CONFIG_FILE} is not what the edits ask for in {', '.join(differing)}"] if differing else []


def _name_reasons(layout: AdapterLayout, header: Header) -> list[str]:
    expected = {
        name: shape
        for module in layout.modules
        for name, shape in stored_shapes(module, layout.rank, constants=layout.constants).items()
    }
    missing, foreign = sorted(set(expected) - set(header.entries)), sorted(set(header.entries) - set(expected))
    reasons = [
        f"{WEIGHTS_FILE}: {len(names)} tensor(s) {what}, such as {names[0]}"
        for names, what in ((missing, "are missing"), (foreign, "belong to no edit"))
        if names
    ]
    for name in sorted(set(expected) & set(header.entries)):
        entry = header.entries[name]
        if (entry.dtype, entry.shape) != ("F32", expected[name]):
            reasons.append(f"{name} is {entry.dtype} {list(entry.shape)}, where F32 {list(expected[name])} must be")
    return reasons
