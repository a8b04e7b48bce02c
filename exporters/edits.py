"""The edits themselves as a result: a few KB that say everything, for whoever has the base."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.exporters.protocol import Exported, RunsElsewhere

from alignez_bake.certificate.verdict import tensors_json
from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.exporters.protocol import ExportSettings

    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.lowering.decide import Lowering, Refusal, Route
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

EDITS_FILE: Final = "edits.safetensors"
# Entries and header of the file, beside the arrays.
_BYTES_AN_EDIT: Final = 1024


@dataclass(frozen=True)
class EditsCertificate:
    """Whether an edit file holds the plan, bit for bit.

    Attributes:
        verdict: `passed` or `failed`.
        reasons: one line each for what differs.
        edits: how many there are.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    edits: int
    level: Level = field(default="tensors", init=False)

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values; nothing of the base is in the file, and no edit loses anything."""
        share = 1.0 if self.verdict == "passed" else None
        return tensors_json(self, edited=self.edits, untouched=0, lowest_delivered_share=share)


class EditsExporter(RunsElsewhere):
    """Writes `edits.safetensors`. It carries every edit there is."""

    name = "edits"
    routes: frozenset[Route] = frozenset({"carry"})
    exactness = "the record itself"
    cost = "none: it is baked before it runs"
    card_library = "alignez-bake"
    held = (
        "edits, which nothing runs as they are: bake them first, `alignez-bake bake --edits FILE --as checkpoint`, and "
        "verify that"
    )

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None: the record goes along as it is."""
        del edit, slot
        return None

    def check(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> None:
        """Refuse a dtype: edits keep their own.

        Raises:
            BadInputError: a dtype was asked for.
        """
        del base
        if settings.dtype is not None:
            raise BadInputError(f"--dtype {settings.dtype} is not for --as edits, which keeps the edits as they are")
        lowering.require_complete()

    def bytes_needed(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> int:
        """The size of the arrays."""
        del base, settings
        edits = lowering.plan.edits
        arrays = [array for edit in edits for array in (edit.left, edit.right, edit.offset, edit.bias)]
        return sum(array.nbytes for array in arrays if array is not None) + _BYTES_AN_EDIT * len(edits)

    def export(
        self, base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
    ) -> Exported:
        """Write the plan as it is, its dials included."""
        self.check(base, lowering, settings)
        with progress.task("writing edits", 1) as advance:
            write_edits(lowering.plan, out / EDITS_FILE)
            advance()
        return Exported()

    def certify_tensors(self, base: ModelFolder, lowering: Lowering, out: Path, progress: Progress) -> EditsCertificate:
        """Read the plan back and compare it, bit for bit."""
        del base, progress
        reasons = plan_differences(read_edits(out / EDITS_FILE), lowering.plan)
        return EditsCertificate("failed" if reasons else "passed", reasons, len(lowering.plan.edits))


def plan_differences(found: EditPlan, expected: EditPlan) -> tuple[str, ...]:
    """In what two plans differ, one line each; nothing where they are the same."""
    reasons = []
    if len(found.edits) != len(expected.edits):
        reasons.append(f"it holds {len(found.edits)} edits, the plan has {len(expected.edits)}")
    reasons.extend(
        f"edit {index}, {edit.name}, is not the plan's"
        for index, (read, edit) in enumerate(zip(found.edits, expected.edits, strict=False))
        if not read.equals(edit)
    )
    if dict(found.weights) != dict(expected.weights):
        reasons.append(f"its dials are {dict(found.weights)}, the plan's {dict(expected.weights)}")
    if found.base != expected.base:
        reasons.append("it names another base than the plan")
    return tuple(reasons)
