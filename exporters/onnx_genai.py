"""A folder for onnxruntime-genai, made by its own model builder from our folded checkpoint.

The builder knows architectures by name and builds each graph anew from the weights, so that nothing which we insert
could come along: only what folds, or folds after an exact re-homing, can be exported. It computes with
GroupQueryAttention, whose rows must not be padded on the left: onnxruntime-genai gives equally long prompts to a batch,
or one prompt at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alignez_bake.exporters.baked_model import baked_checkpoint
from alignez_bake.exporters.base_files import copy_base_files
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.exporters.onnx_genai_builder import BUILT_FILES, GRAPH_FILE, build
from alignez_bake.exporters.onnx_record import recorded_settings
from alignez_bake.exporters.output_folder import scratch_place
from alignez_bake.exporters.protocol import Exported, ExportSettings
from alignez_bake.exporters.required_packages import require_packages

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Refusal, fold_refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignez_bake.exporters.onnx_genai_result import GenaiResult
    from alignez_bake.exporters.protocol import Option

    from alignez_bake.certificate.verdict import Level, LevelCertificate
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering, Route
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

PROVED_ARCHITECTURES: Final = (
    "Gemma2ForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
"""Those of the builder's whose graphs were run against torch (tests/exporters/test_onnx_genai.py). Release 0.18 cannot
build those of SmolLM3ForCausalLM and Gemma3ForCausalLM with transformers 5."""
HEAD_WIDTH_STEP: Final = 16
"""ONNX Runtime's rotary kernel wants heads of a multiple of it."""
_PACKAGES: Final = ("onnxruntime_genai", "onnx_ir", "onnxruntime")


class OnnxGenaiExporter:
    """Writes `model.onnx`, `genai_config.json` and the tokenizer, as `onnxruntime_genai.Model` loads them."""

    name = "onnx-genai"
    routes: frozenset[Route] = frozenset({"fold", "rehome"})
    exactness = "exact, rounded once"
    cost = "none: same graph"
    card_library = "onnxruntime-genai"
    highest_level: Level = "forward"
    default_level: Level = "forward"
    options: frozenset[Option] = frozenset()
    inserts_need_code = False
    streams = False
    reads_fp8 = False

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the edit folds at this slot."""
        return fold_refusal(edit, slot)

    def check(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> None:
        """Refuse packages that are missing, dtypes and architectures that the builder has no graph for.

        Raises:
            BadInputError: what is refused, with the way out.
        """
        require_packages(self.name, _PACKAGES, "pip install 'alignez-bake[genai,cpu]'")
        if settings.dtype not in (None, "float32"):
            raise BadInputError(
                f"--as {self.name} writes graphs for the CPU, which compute in float32: leave --dtype {settings.dtype} "
                "out, or use --as onnx"
            )
        CheckpointExporter().check(base, lowering, settings)
        _check_config(checkpoint_contents(base, lowering).config)

    def bytes_needed(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> int:
        """The graph, in float32 at most, and beside it for a while the checkpoint that it is made of."""
        checkpoint = CheckpointExporter()
        return checkpoint.bytes_needed(base, lowering, settings) + checkpoint.bytes_needed(
            base, lowering, ExportSettings("float32")
        )

    def export(
        self, base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
    ) -> Exported:
        """Write the folder; what the builder says goes to the error if it fails, else nowhere.

        Raises:
            BadInputError: as `CheckpointExporter.export`, or the builder failed.
        """
        lowering.require_complete()
        weight_files = (*base.tensors.files, *BUILT_FILES)
        skipped = copy_base_files(base.path, out, weight_files)
        with baked_checkpoint(
            base, lowering, scratch_place(out), dtype=settings.dtype, progress=progress
        ) as checkpoint:
            (out / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
            with progress.task("building the graph", 1) as advance:
                build(checkpoint, out)
                advance()
        return Exported(skipped)

    def certify_tensors(self, base: ModelFolder, lowering: Lowering, out: Path, progress: Progress) -> LevelCertificate:
        """The graph's initialisers against the baked model's tensors."""
        from alignez_bake.exporters.onnx_genai_tensors import certify_genai_tensors  # noqa: PLC0415 - needs onnx

        dtype = recorded_settings(out, self.name).dtype
        return certify_genai_tensors(base, lowering, out / GRAPH_FILE, dtype=dtype, progress=progress)

    def reload(
        self, base: ModelFolder, out: Path, lowering: Lowering, *, device: str, trust_remote_code: bool
    ) -> GenaiResult:
        """The folder in onnxruntime-genai.

        Raises:
            BadInputError: another device than the CPU.
        """
        from alignez_bake.exporters.onnx_genai_result import GenaiResult  # noqa: PLC0415 - imports torch

        if device != "cpu":
            raise BadInputError(f"--device {device}: graphs of --as {self.name} are built for the CPU")
        dtype = recorded_settings(out, self.name).dtype
        return GenaiResult(out, base, lowering, dtype, trust_remote_code=trust_remote_code)


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse a model that the builder has no graph for, or whose heads its kernels cannot take."""
    (architecture, *_) = config.get("architectures") or ["no architecture"]
    if architecture not in PROVED_ARCHITECTURES:
        raise BadInputError(
            f"onnxruntime-genai's builder has no graph of {architecture} that was proved: it has of "
            f"{', '.join(PROVED_ARCHITECTURES)}; use --as onnx"
        )
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    width = config.get("head_dim")
    if width is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        width = hidden // heads
    if not isinstance(width, int) or width % HEAD_WIDTH_STEP:
        raise BadInputError(
            f"attention heads of width {width}: onnxruntime-genai's graphs need a multiple of {HEAD_WIDTH_STEP}; use "
            "--as onnx"
        )
