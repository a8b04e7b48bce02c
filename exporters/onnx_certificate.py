"""Level `tensors` of a folder with a graph: its initialisers, the files beside it, and what quantisation did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from alignez_bake.exporters.onnx import GRAPH_FILE
from alignez_bake.exporters.output_folder import OURS

from alignez_bake.certificate.graph_tensors import certify_graph_tensors
from alignez_bake.certificate.verdict import Level, Verdict, main_figures, worst

if TYPE_CHECKING:
    from alignez_bake.exporters.protocol import ExportSettings

    from alignez_bake.certificate.graph_tensors import GraphTensorsCertificate
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.onnx_optimise.quantisation_errors import QuantisationErrors
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class GraphFolderCertificate:
    """What lies on disk, compared with the formula.

    Attributes:
        tensors: the initialisers; of a quantised graph those of the graph that it was made of.
        files: names of files beside the graph that are not as they must be.
        quantised: quantised weights against their bounds; None where they are not quantised.
    """

    tensors: GraphTensorsCertificate
    files: tuple[str, ...]
    quantised: QuantisationErrors | None = None
    level: Level = field(default="tensors", init=False)

    @property
    def verdict(self) -> Verdict:
        """Failed where anything is not as it must be, else that of the initialisers."""
        lost: list[Verdict] = ["failed"] if self.files or (self.quantised and self.quantised.reasons) else []
        return worst([*lost, self.tensors.verdict]) or "failed"

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line each for what went wrong."""
        files = [f"{name} is not the file that belongs to this graph" for name in self.files]
        return (*self.tensors.reasons, *files, *(() if self.quantised is None else self.quantised.reasons))

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        figures = {**self.tensors.to_json(), "verdict": self.verdict, "reasons": list(self.reasons)}
        if self.quantised is not None:
            figures["quantised"] = {
                "tensors": [asdict(tensor) for tensor in self.quantised.tensors],
                "untouched": self.quantised.untouched,
            }
        return figures

    def main_figures(self) -> list[tuple[str, str]]:
        """Those of the initialisers, and the matrix that quantisation changed most."""
        rows = main_figures(self.tensors)
        if self.quantised is not None:
            worst_one = self.quantised.worst
            share = f"{worst_one.relative:.2%} off in all, {worst_one.of_bound:.0%} of the bound of a value"
            rows.append((f"quantised matrices, {len(self.quantised.tensors)}; worst", f"{worst_one.name}: {share}"))
        return rows


def certify_graph_folder(
    base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
) -> GraphFolderCertificate:
    """Compare a folder with the base and the formula.

    Nothing is run for a graph in full precision. For quantised weights the graph that they were made of is exported
    again, into a temporary folder, and compared both ways.

    Args:
        base: the base model.
        lowering: how the edits went in.
        out: the folder, a result or one that is being written.
        settings: what it was made with.
        progress: counts tensors.

    Raises:
        BadInputError: a graph or a base that is damaged, or data out of the graph's folder.
    """
    files = _changed_files(base, lowering, out, settings.dtype)
    graph = out / GRAPH_FILE
    if settings.weight_bits is None:
        tensors = certify_graph_tensors(base, lowering, graph, dtype=settings.dtype, progress=progress)
        return GraphFolderCertificate(tensors, files)
    from alignez_bake.exporters.onnx_reference import graph_before_quantisation  # noqa: PLC0415 - torch, transformers

    from alignez_bake.onnx_optimise.quantisation_errors import quantisation_errors  # noqa: PLC0415 - needs onnx

    with graph_before_quantisation(base, lowering, out, settings, progress) as source:
        tensors = certify_graph_tensors(base, lowering, source, dtype=settings.dtype, progress=progress)
        return GraphFolderCertificate(tensors, files, quantisation_errors(source, graph))


def _changed_files(base: ModelFolder, lowering: Lowering, out: Path, dtype: str | None) -> tuple[str, ...]:
    """Names of files that differ from what belongs beside the graph, or are missing."""
    from alignez_bake.exporters.onnx_writing import write_companions  # noqa: PLC0415

    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / OURS).mkdir()
        write_companions(base, lowering, folder, dtype=dtype)
        wanted = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return tuple(
            path.as_posix()
            for path in wanted
            if not (out / path).is_file() or (out / path).read_bytes() != (folder / path).read_bytes()
        )
