"""Level `tensors`: every edited tensor is the formula, rounded once; every other byte is the base's.

What an equivalent model adds to the base (biases, hidden units) is zero but for the edits, and what inserted modules
bring are the edits' own values.

Streams through both folders; no model is run and torch is not imported.
"""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.certificate.compared_tensors import ComparedTensors
from alignez_bake.certificate.verdict import MIN_DELIVERED_SHARE
from alignez_bake.exporters.base_files import DTYPE_KEYS, base_files, code_files
from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.exporters.dtype import FILE_DTYPES as DTYPE_NAMES
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.lowering.fold import delivery
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.dtypes import cast_once, is_plain_float, numpy_dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.certificate.verdict import Verdict
    from alignez_bake.exporters.checkpoint_contents import CheckpointContents
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.lowering.fold import Delivery, FoldedTensor
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.safetensors_io.reader import TensorFolder

# Another order of summation moves an exact value by some 1e-16 of its terms: enough to round the other way only
# where it lies this close to the middle between two stored values, in units of their distance.
_TIE_WIDTH: Final = 1e-4
_FP64_TOLERANCE: Final = 1e-12
_NAMES_SHOWN: Final = 5
_ABSENT: Final = object()
_OTHER_VERSION: Final = "; results of another version of alignez-bake are verified by that version"
_OWN_FILES: Final = ("config.json", "README.md")


@dataclass(frozen=True)
class TensorsCertificate(ComparedTensors):
    """What a comparison of two folders found: every byte and value is what it must be, or the verdict is `failed`.

    Attributes:
        dtype: of the result, if it is not the base's.
    """

    dtype: str | None

    def own_figures(self) -> dict[str, Any]:
        """The dtype."""
        return {"dtype": self.dtype}


def certify_tensors(
    base: ModelFolder, result: ModelFolder, lowering: Lowering, *, progress: Progress | None = None
) -> TensorsCertificate:
    """Compare a result on disk with the base and the formula.

    Args:
        base: the base model.
        result: what was written, as it lies on disk.
        lowering: how the edits went in.
        progress: counts tensors.

    Raises:
        BadInputError: a file that cannot be read, or a base that is damaged.
    """
    contents = checkpoint_contents(base, lowering)
    expected_names, result_names = set(contents.names), set(result.tensors.names())
    reasons = [
        f"{len(names)} tensor(s) {what}: {listed(names)}"
        for what, names in (
            ("that must be there are missing", sorted(expected_names - result_names)),
            ("are neither the base's nor the edits'", sorted(result_names - expected_names)),
        )
        if names
    ]
    common = sorted(expected_names & result_names)
    comparison = _Comparison(base, contents, result)
    with (progress or NoProgress()).task("comparing tensors", len(common)) as advance:
        for name in common:
            advance()
            comparison.compare(name)
    deliveries, differing = comparison.deliveries, comparison.differing
    reasons.extend(comparison.reasons)
    if differing:
        reasons.append(f"{len(differing)} tensor(s) without an edit differ from the base's: {listed(differing)}")
    reasons.extend(_config_reasons(contents.config, result))
    reasons.extend(_file_reasons(base, result, contents))
    stored_names = [name for name in common if name not in contents.added]
    reasons.extend(_dtype_reasons(contents, result, stored_names))
    verdict, final_reasons = judged(reasons, deliveries, lowering)
    dtypes = {result.tensors.entry(name).dtype for name in stored_names}
    changed = dtypes != {contents.home.tensors.entry(name).dtype for name in stored_names}
    return TensorsCertificate(
        verdict,
        final_reasons,
        tuple(deliveries),
        len(common) - len(deliveries) - len(contents.added),
        len(contents.added),
        "/".join(sorted(dtypes)) if changed else None,
    )


def judged(
    reasons: Sequence[str], deliveries: Sequence[Delivery], lowering: Lowering
) -> tuple[Verdict, tuple[str, ...]]:
    """Verdict and reasons of a comparison.

    Args:
        reasons: one line each for what is not what it must be.
        deliveries: of the edited tensors.
        lowering: how the edits went in.
    """
    found = (*reasons, *rounding_reasons(deliveries))
    if found:
        return "failed", found
    if all(entry.share is None for entry in deliveries) and not inserts_act(lowering):
        return "inconclusive", ("the edits change nothing, so nothing shows that they were applied",)
    return "passed", ()


def rounding_reasons(deliveries: Sequence[Delivery]) -> list[str]:
    """One line where rounding left too little of some edits."""
    shares = [entry.share for entry in deliveries if entry.share is not None]
    lost = [entry.name for entry in deliveries if entry.share is not None and not entry.share >= MIN_DELIVERED_SHARE]
    if not lost:
        return []
    bound = f"lowest delivered share {min(shares):.3f}, bound {MIN_DELIVERED_SHARE}"
    way_out = "use a larger strength, or --dtype float32"
    return [f"rounding ate the edit in {len(lost)} tensor(s), {bound}: {listed(lost)}; {way_out}"]


def inserts_act(lowering: Lowering) -> bool:
    """Whether any inserted edit adds something to some input, in the fp32 in which it runs."""
    groups = [group for insert in lowering.inserts for group in insert.groups]
    return any(
        abs(group.weight * edit.strength) >= np.finfo(np.float32).smallest_subnormal
        and (
            (edit.bias is not None and bool(edit.bias.any()))
            or (
                edit.left is not None
                and bool(edit.left.any())
                and any(array is not None and array.any() for array in (edit.right, edit.offset))
            )
        )
        for group in groups
        for edit in group.edits
    )


class _Comparison:
    """Result and expectation, tensor by tensor."""

    def __init__(self, base: ModelFolder, contents: CheckpointContents, result: ModelFolder) -> None:
        self._base, self._contents, self._result = base, contents, result
        self.reasons: list[str] = []
        self.deliveries: list[Delivery] = []
        self.differing: list[str] = []

    def compare(self, name: str) -> None:
        contents, stored = self._contents, self._result.tensors
        added, home = contents.added.get(name), contents.home.tensors
        shape = home.entry(name).shape if added is None else added.shape
        if shape != stored.entry(name).shape:
            self.reasons.append(f"{name} has shape {list(stored.entry(name).shape)}, not {list(shape)}")
        elif added is not None:
            values = stored.read(name)
            if values.dtype != added.dtype or values.tobytes() != added.tobytes():
                self.reasons.append(f"{name}, a parameter of an inserted module, is not the edit's")
        elif name in contents.edited:
            tensor, values = contents.edited.compute(name), stored.read(name)
            if (wrong := values_off_formula(tensor, values)) > 0:
                self.reasons.append(f"{name}: {wrong} of {values.size} values are not the formula's")
            self.deliveries.append(delivery(tensor, values))
        elif contents.is_copied(name):
            if not _same_values(self._base.tensors, stored, name):
                self.differing.append(name)
        elif not _same_rounded(home.read(name), stored.read(name)):
            self.reasons.append(f"{name}, which makes room for edits and has none of its own, is not as it must be")


def values_off_formula(tensor: FoldedTensor, stored: NDArray[Any]) -> int:
    """How many stored values are not the formula's, rounded to nearest.

    Each must be the exact value rounded to nearest. The one exception is a value whose exact counterpart lies in
    the middle between two neighbours but for the noise of fp64 summation: there either neighbour is right. Values
    stored in fp64 are compared with 1e-12 of the tensor's largest.
    """
    if stored.dtype == np.float64:
        bound = _FP64_TOLERANCE * max(float(np.abs(tensor.exact).max(initial=0.0)), np.finfo(np.float64).tiny)
        return int(np.count_nonzero(~(np.abs(stored - tensor.exact) <= bound)))
    nearest = cast_once(tensor.exact, stored.dtype)
    off = stored.view(f"u{stored.dtype.itemsize}") != nearest.view(f"u{stored.dtype.itemsize}")
    if not off.any():
        return 0
    exact, found = tensor.exact[off], stored[off].astype(np.float64)
    expected = nearest[off].astype(np.float64)
    middle = (found + expected) / 2
    is_tie = np.abs(exact - middle) <= _TIE_WIDTH * np.abs(found - expected)
    # Zero and minus zero are one value; a neighbour's neighbour is never a tie.
    return int(np.count_nonzero(~((found == expected) | (is_tie & np.isfinite(found)))))


def _same_values(base: TensorFolder, result: TensorFolder, name: str) -> bool:
    """Byte for byte in the same dtype; value for value of one rounding where the dtype was changed."""
    old, new = base.entry(name).dtype, result.entry(name).dtype
    if old == new:
        blocks = zip(base.iter_blocks(name), result.iter_blocks(name), strict=True)
        return all(mine == theirs for mine, theirs in blocks)
    if not (is_plain_float(old) and is_plain_float(new)):
        return False
    expected = cast_once(base.read(name), numpy_dtype_of(new))
    return expected.tobytes() == result.read(name).tobytes()


def _same_rounded(expected: NDArray[Any], stored: NDArray[Any]) -> bool:
    """Value for value, in the stored dtype."""
    return cast_once(expected, stored.dtype).tobytes() == stored.tobytes()


def _config_reasons(expected: Mapping[str, Any], result: ModelFolder) -> list[str]:
    keys = (set(expected) | set(result.config)) - set(DTYPE_KEYS)
    # An entry of null is not an absent one: mistral's sliding_window is 4096 where config.json does not say.
    changed = sorted(key for key in keys if expected.get(key, _ABSENT) != result.config.get(key, _ABSENT))
    return [f"config.json is not what it must be in {listed(changed)}"] if changed else []


def _file_reasons(base: ModelFolder, result: ModelFolder, contents: CheckpointContents) -> list[str]:
    """Tokenizer, generation config and whatever else was copied: the same bytes; so is what was written anew.

    config.json is compared by value.
    """
    written = {**contents.code, **contents.rewritten}
    copied = base_files(base.path, base.tensors.files).copied
    del copied["config.json"]
    differing = [
        target
        for name, target in copied.items()
        if target not in written
        if not (result.path / target).is_file()
        or not filecmp.cmp(base.path / name, result.path / target, shallow=False)
    ]
    reasons = (
        [f"{len(differing)} file(s) are missing or differ from the base's: {listed(differing)}"] if differing else []
    )
    for name, text in written.items():
        if not (result.path / name).is_file() or (result.path / name).read_bytes() != text.encode("utf-8"):
            reasons.append(f"{name} is not what is written for these edits{_OTHER_VERSION * (name in contents.code)}")
    expected = {*copied.values(), *written, *_OWN_FILES, *result.tensors.files}
    if result.tensors.index is not None:
        expected.add(result.tensors.index.name)
    if foreign := sorted(_loadable_files(result.path) - expected):
        reasons.append(f"{len(foreign)} file(s) are neither the base's nor the edits': {listed(foreign)}")
    return reasons


def _loadable_files(folder: Path) -> set[str]:
    """All files that a loader may look for, and all code.

    One more can make another model of the same weights: an adapter_config.json sends transformers to another base, a
    further .safetensors is loaded by some servers, a chat template changes every prompt. Nobody loads hidden files,
    such as the hub's .gitattributes, nor the record of the bake.
    """
    names = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    visible = {name for name in names if name.parts[0] != OURS and not name.parts[0].startswith(".")}
    return {*(name.as_posix() for name in visible), *code_files(folder)}


def _dtype_reasons(contents: CheckpointContents, result: ModelFolder, names: list[str]) -> list[str]:
    """The weights' dtype must be the base's, or one for all float tensors, and config.json must say so.

    Plain `from_pretrained` casts every weight to the dtype of config.json: it would round another one again.
    """
    config = contents.config
    pairs = {(contents.home.tensors.entry(name).dtype, result.tensors.entry(name).dtype) for name in names}
    if all(old == new for old, new in pairs):
        expected = {key: config[key] for key in DTYPE_KEYS if key in config}
    else:
        new_dtypes = sorted({new for old, new in pairs if is_plain_float(old)})
        if len(new_dtypes) > 1:
            return [f"float tensors have the dtypes {', '.join(new_dtypes)}, where the base's or one for all must be"]
        (name,) = [name for name, file_name in DTYPE_NAMES.items() if file_name == new_dtypes[0]]
        expected = dict.fromkeys([key for key in DTYPE_KEYS if key in config] or DTYPE_KEYS[:1], name)
    found = {key: result.config[key] for key in DTYPE_KEYS if key in result.config}
    return [] if found == expected else [f"config.json says {found} of the weights' dtype, where {expected} must be"]


def listed(names: list[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
