"""GGUF files of a plan, made the way a bake makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.exporters.gguf import GgufExporter
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.lowering.lower import lower
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.certificate.tensors import TensorsCertificate
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.model_folder import ModelFolder


def export_gguf(base: ModelFolder, plan: EditPlan, out: Path) -> Path:
    """Write the files into a new folder; returns it."""
    out.mkdir()
    exporter = GgufExporter()
    exporter.export(base, lower(plan, base, exporter), out, ExportSettings(), NoProgress())
    return out


def certify_gguf(base: ModelFolder, plan: EditPlan, out: Path) -> TensorsCertificate:
    """Level `tensors` of such a folder."""
    exporter = GgufExporter()
    return exporter.certify_tensors(base, lower(plan, base, exporter), out, NoProgress())
