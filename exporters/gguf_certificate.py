"""Level `tensors` of GGUF files: every pair and vector is the formula's, and nothing else is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from alignez_bake.exporters.adapter_certificate import compare_pairs
from alignez_bake.exporters.adapter_pairs import Pair
from alignez_bake.exporters.gguf_contents import gguf_contents
from alignez_bake.exporters.gguf_files import ADAPTER_FILE, CONTROL_VECTOR_FILE, read_control_vector, read_lora
from alignez_bake.exporters.gguf_names import llama_cpp_name, tensor_names

from alignez_bake.certificate.tensors import TensorsCertificate
from alignez_bake.lowering.fold import Delivery

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.exporters.gguf_contents import GgufContents
    from numpy.typing import NDArray

    from alignez_bake.certificate.verdict import Verdict
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

# Pairs and vectors are rounded to float32 once, each value by at most 2⁻²⁴ of itself.
_TOLERANCE: Final = 1e-6


def certify_gguf(base: ModelFolder, plan: EditPlan, out: Path, progress: Progress) -> TensorsCertificate:
    """Compare GGUF files on disk with the formula.

    Args:
        base: the base model.
        plan: the edits.
        out: the folder of the files.
        progress: counts maps.

    Raises:
        BadInputError: a file that is damaged or of another kind.
    """
    contents = gguf_contents(base, plan, progress)
    expected, settings = _expected(base, contents)
    stored, found_settings = _stored(out)
    reasons = [
        f"{key} is {found_settings.get(key)!r}, where {settings.get(key)!r} must be"
        for key in sorted(settings.keys() | found_settings.keys())
        if settings.get(key) != found_settings.get(key)
    ]
    reasons += [f"{name} is missing" for name in sorted(expected.keys() - stored.keys())]
    reasons += [f"{name} belongs to no edit" for name in sorted(stored.keys() - expected.keys())]
    deliveries = []
    for name in expected:
        if name not in stored:
            continue
        shapes = [[part.shape for part in pair] for pair in (stored[name], expected[name])]
        if shapes[0] != shapes[1]:
            reasons.append(f"{name} has the shapes {shapes[0]}, where {shapes[1]} must be")
            continue
        compared = compare_pairs(stored[name], expected[name])
        deliveries.append(Delivery(name, compared.share, compared.residual, None))
        if not compared.error <= _TOLERANCE:
            reasons.append(
                f"{name}: what it adds is off the formula by {compared.error:.1e} of its size, bound {_TOLERANCE:.0e}"
            )
    verdict: Verdict = "failed" if reasons else "passed"
    if not reasons and all(entry.share is None for entry in deliveries):
        verdict, reasons = "inconclusive", ["the edits change nothing, so nothing shows that they were applied"]
    return TensorsCertificate(verdict, tuple(reasons), tuple(deliveries), untouched=0, added=0, dtype=None)


def _expected(base: ModelFolder, contents: GgufContents) -> tuple[dict[str, Pair], dict[str, object]]:
    names = tensor_names(base.architecture, base.config, [edited.module for edited in contents.maps])
    arrays = {
        # The map's constant is in the vectors.
        f"{ADAPTER_FILE}: {names[edited.module]}": edited.pair._replace(bias=np.zeros_like(edited.pair.bias))
        for edited in contents.maps
    }
    arrays |= {_direction(layer): _as_vector(shift) for layer, shift in contents.shifts.items()}
    architecture = llama_cpp_name(base.architecture.model_type)
    settings: dict[str, object] = {}
    if contents.maps:
        settings |= {f"{ADAPTER_FILE}: architecture": architecture, f"{ADAPTER_FILE}: alpha": float(contents.rank)}
    if contents.shifts:
        settings[f"{CONTROL_VECTOR_FILE}: architecture"] = architecture
    return arrays, settings


def _stored(out: Path) -> tuple[dict[str, Pair], dict[str, object]]:
    arrays: dict[str, Pair] = {}
    settings: dict[str, object] = {}
    if (out / ADAPTER_FILE).exists():
        lora = read_lora(out / ADAPTER_FILE)
        settings |= {f"{ADAPTER_FILE}: architecture": lora.architecture, f"{ADAPTER_FILE}: alpha": lora.alpha}
        arrays |= {f"{ADAPTER_FILE}: {name}": _as_pair(a, b) for name, (a, b) in lora.pairs.items()}
    if (out / CONTROL_VECTOR_FILE).exists():
        vectors = read_control_vector(out / CONTROL_VECTOR_FILE)
        settings[f"{CONTROL_VECTOR_FILE}: architecture"] = vectors.architecture
        arrays |= {_direction(layer): _as_vector(shift) for layer, shift in vectors.shifts.items()}
    return arrays, settings


def _direction(layer: int) -> str:
    return f"{CONTROL_VECTOR_FILE}: direction.{layer}"


def _as_pair(a: NDArray[np.float32], b: NDArray[np.float32]) -> Pair:
    """What a file holds, as [experts, ...] in float64."""
    experts = a.shape[0] if a.ndim == 3 else 1
    return Pair(
        b.astype(np.float64).reshape(experts, *b.shape[-2:]),
        a.astype(np.float64).reshape(experts, *a.shape[-2:]),
        np.zeros(b.shape[-2]),
    )


def _as_vector(shift: NDArray[np.floating[Any]]) -> Pair:
    """A pair of rank 0 with a constant."""
    return Pair(np.zeros((1, shift.size, 0)), np.zeros((1, 0, 0)), shift.astype(np.float64))
