"""`inspect`: what an edit file or a result folder holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.edit_file import read_edits
from alignez_bake.errors import BadInputError
from alignez_bake.hub.download import edits_file
from alignez_bake.report.html.packages import require_report_packages
from alignez_bake.report.record import read_certificate, read_record, read_result_edits

if TYPE_CHECKING:
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan


@dataclass(frozen=True)
class EditSummary:
    """One edit in figures.

    Attributes:
        site: where it applies.
        objective: its objective, if it has one.
        reads: what it reads.
        gate: its non-linearity.
        positions: which tokens it edits.
        rank: its rank; 0 for a shift.
        strength: what multiplies it.
        norm: ‖strength · L Rᵀ‖ (Frobenius); of a shift, ‖strength · c‖.
        has_constant: whether it needs a bias to be folded.
    """

    site: str
    objective: str | None
    reads: str
    gate: str
    positions: str
    rank: int
    strength: float
    norm: float
    has_constant: bool


@dataclass(frozen=True)
class Inspection:
    """What a file or folder holds.

    Attributes:
        path: what was inspected, as it was named.
        plan: its edits.
        edits: a summary of each.
        record: `alignez.json` of a result folder; None for a file, and for the hub, from which edits alone come.
        certificate: `certificate.json` of a result folder, as it was written; `verify` measures it again.
        html: the page that was written; None where none was asked for.
    """

    path: Path
    plan: EditPlan
    edits: tuple[EditSummary, ...]
    record: dict[str, Any] | None
    certificate: dict[str, Any] | None
    html: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The inspection as JSON values."""
        return {
            "path": str(self.path),
            "base": None if self.plan.base is None else asdict(self.plan.base),
            "weights": dict(self.plan.weights),
            "objectives": list(self.plan.objectives),
            "provenance": dict(self.plan.provenance),
            "edits": [asdict(edit) for edit in self.edits],
            "record": self.record,
            "certificate": self.certificate,
            **({} if self.html is None else {"html": str(self.html)}),
        }


def inspect(path: str | Path, *, html: str | Path | None = None) -> Inspection:
    """Read an edit file, or the record of a result folder, and make its page again if that is asked for.

    The page is made of what the result's records say, whoever wrote them: nothing is measured, and nothing in them is
    run or loaded.

    Args:
        path: an edit file; a result folder; or `user/repo[@revision]` of a repository of the hub with edits, of
            which nothing else is downloaded.
        html: file to write the page of a result folder to, outside of it; another report of this tool is replaced.

    Raises:
        BadInputError: none of them, damaged, or the hub does not give it; `html` where there is no result folder, or a
            place that the page must not take.
    """
    path, page = Path(path), None if html is None else Path(html)
    if page is not None:
        require_report_packages()
        if not path.is_dir():
            raise BadInputError(
                f"--html shows a result folder, and {path} is none: bake the edits, or download it whole"
            )
    if path.is_dir():
        plan = read_result_edits(path)
        record, certificate = read_record(path), read_certificate(path)
    else:
        plan, record, certificate = read_edits(edits_file(path)), None, None
    if page is not None:
        # matplotlib takes most of a second to import.
        from alignez_bake.report.html.of_result import write_page  # noqa: PLC0415

        write_page(path, page)
    return Inspection(path, plan, tuple(_summary(edit) for edit in plan.edits), record, certificate, page)


def _summary(edit: Edit) -> EditSummary:
    if edit.left is None or edit.right is None:
        assert edit.bias is not None
        norm = float(np.linalg.norm(edit.bias.astype(np.float64)))
    else:
        # ‖L Rᵀ‖² = tr(LᵀL RᵀR): k x k matrices instead of d_out x d_read.
        left, right = edit.left.astype(np.float64), edit.right.astype(np.float64)
        norm = float(np.sqrt(max(np.sum((left.T @ left) * (right.T @ right)), 0.0)))
    return EditSummary(
        site=str(edit.site),
        objective=edit.objective,
        reads=edit.reads,
        gate=edit.gate,
        positions=edit.positions,
        rank=edit.rank,
        strength=edit.strength,
        norm=abs(edit.strength) * norm,
        has_constant=edit.has_constant,
    )
