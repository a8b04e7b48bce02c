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
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.dtypes import is_plain_float

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignez_bake.certificate.verdict import Verdict
    from alignez_bake.exporters.checkpoint_contents import CheckpointContents
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.lowering.fold import Delivery
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.streaming.rounding_choice import AskedRounding
    from alignez_bake.streaming.written import WrittenFile

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
    base: ModelFolder,
    result: ModelFolder,
    lowering: Lowering,
    *,
    rounding: AskedRounding = "auto",
    progress: Progress | None = None,
) -> TensorsCertificate:
    """Compare a result on disk with the base and the formula.

    Args:
        base: the base model.
        result: what was written, as it lies on disk.
        lowering: how the edits went in.
        rounding: the rule of its edited values.
        progress: counts tensors.

    Raises:
        BadInputError: a file that cannot be read, or a base that is damaged.
    """
    # Imports threads and their limits, which a bake that certifies as it writes needs elsewhere alone.
    from alignez_bake.certificate.tensor_comparison import compare_tensors  # noqa: PLC0415

    contents = checkpoint_contents(base, lowering)
    names = sorted({*contents.names} & {*result.tensors.names()})
    with (progress or NoProgress()).task("comparing tensors", len(names)) as advance:
        compared = compare_tensors(contents, result, names, rounding, advance)
    reasons = list(compared.reasons)
    if compared.differing:
        differing = compared.differing
        reasons.append(f"{len(differing)} tensor(s) without an edit differ from the base's: {listed(differing)}")
    return _certificate(contents, result, lowering, reasons, compared.deliveries)


def certify_written(
    contents: CheckpointContents, result: ModelFolder, lowering: Lowering, written: Sequence[WrittenFile]
) -> TensorsCertificate:
    """The certificate of a result whose weights were made and measured just now, block by block.

    What passed is known: each edited value is the formula's, rounded once, and all other bytes are those that were
    read of the base. Headers, config and the files beside the weights are read back from the disk.

    Args:
        contents: what was to be written.
        result: what was, as it lies on disk.
        lowering: how the edits went in.
        written: what was seen of its weight files.

    Raises:
        BadInputError: a file that cannot be read.
    """
    tensors = [tensor for file in written for tensor in file.tensors]
    deliveries = [tensor.sums.delivery(tensor.name) for tensor in tensors if tensor.sums is not None]
    found = {name: result.tensors.entry(name) for name in result.tensors.names()}
    reasons = []
    for name in contents.names:
        added = contents.added.get(name)
        shape = contents.home.tensors.entry(name).shape if added is None else added.shape
        if name in found and found[name].shape != shape:
            reasons.append(f"{name} has shape {list(found[name].shape)}, not {list(shape)}")
    return _certificate(contents, result, lowering, reasons, sorted(deliveries, key=lambda entry: entry.name))


def _certificate(
    contents: CheckpointContents,
    result: ModelFolder,
    lowering: Lowering,
    of_tensors: Sequence[str],
    deliveries: Sequence[Delivery],
) -> TensorsCertificate:
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
    stored_names = [name for name in common if name not in contents.added]
    reasons.extend(of_tensors)
    reasons.extend(_config_reasons(contents.config, result))
    reasons.extend(_file_reasons(contents.base, result, contents))
    reasons.extend(_dtype_reasons(contents, result, stored_names))
    verdict, final_reasons = judged(reasons, deliveries, lowering)
    dtypes = {result.tensors.entry(name).dtype for name in stored_names}
    changed = dtypes != {contents.dtype_of(name) for name in stored_names}
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
    pairs = {(contents.dtype_of(name), result.tensors.entry(name).dtype) for name in names}
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
