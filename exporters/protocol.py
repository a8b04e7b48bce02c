"""What an exporter is. Each kind of artefact is one file with one class of this shape, found by its name.

A third party adds one through an entry point of the group `alignez_bake.exporters` (see docs/exporters.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol

from alignez_bake.errors import BadInputError
from alignez_bake.integrity.hashing import DEFAULT
from alignez_bake.lowering.row_kernel import row_backend

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from alignez_bake.certificate.verdict import Level, LevelCertificate
    from alignez_bake.edit import Edit
    from alignez_bake.integrity.hashing import Algorithm
    from alignez_bake.language_model.answering import Answering
    from alignez_bake.lowering.decide import Lowering, Refusal, Route
    from alignez_bake.lowering.row_kernel import RowBackend
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.streaming.rounding_choice import AskedRounding
    from alignez_bake.streaming.written import WrittenFile


Option = Literal["opset", "external_data", "optimise", "weight_bits", "link", "rounding"]

_FLAGS: Final[Mapping[Option, str]] = {
    "opset": "--opset",
    "external_data": "--external-data",
    "optimise": "--optimize",
    "weight_bits": "--int4 and --int8",
    "link": "--link",
    "rounding": "--rounding",
}
_UNASKED: Final = (None, False, "auto")
_OF_CHECKPOINTS: Final = ("link", "rounding")


@dataclass(frozen=True)
class ExportSettings:
    """What a user asked of an artefact.

    Attributes:
        dtype: of all float tensors, such as "float32"; the stored dtypes where None.
        base_name: the base as the user named it, a folder or a hub id: what an adapter refers to.
        opset: of a graph's operators; the exporter's own choice where None.
        external_data: weights in a file beside the graph, however small they are.
        optimise: fused operators.
        weight_bits: 4 or 8 for weights that are quantised after the fold; as they are where None.
        link: files that stay the base's may be hard links to them.
        rounding: of edited values.
        hash_algorithm: of the manifest.
        row_backend: what computes edited rows of 16 bits.
        runs_on: device on which level `forward` will run the artefact; None where it will not be run.
    """

    dtype: str | None = None
    base_name: str = ""
    opset: int | None = None
    external_data: bool = False
    optimise: bool = False
    weight_bits: int | None = None
    link: bool = False
    rounding: AskedRounding = "auto"
    hash_algorithm: Algorithm = DEFAULT
    row_backend: RowBackend = field(default_factory=row_backend)
    runs_on: str | None = None

    def options(self) -> dict[str, bool | int | str]:
        """Those that were asked for beside dtype and base, by name."""
        return {option: value for option in _FLAGS if (value := getattr(self, option)) not in _UNASKED}

    def flags(self) -> list[str]:
        """The same as words of a command."""
        words = [] if self.opset is None else ["--opset", str(self.opset)]
        words += ["--external-data"] if self.external_data else []
        words += ["--optimize"] if self.optimise else []
        words += [] if self.weight_bits is None else [f"--int{self.weight_bits}"]
        words += ["--link"] if self.link else []
        words += [] if self.rounding == "auto" else ["--rounding", self.rounding]
        return words + ([] if self.hash_algorithm == DEFAULT else ["--hash", self.hash_algorithm])

    def check_options(self, artefact: str, options: Collection[Option]) -> None:
        """Refuse what an artefact knows nothing of.

        Args:
            artefact: name of the exporter.
            options: those that it has.

        Raises:
            BadInputError: the flag that is not for it.
        """
        for option, flag in _FLAGS.items():
            if getattr(self, option) not in _UNASKED and option not in options:
                other = "checkpoint" if option in _OF_CHECKPOINTS else "onnx"
                raise BadInputError(f"--as {artefact} has no use for {flag}: leave it out, or use --as {other}")


@dataclass(frozen=True)
class SkippedFile:
    """A file of the base that is not in the result."""

    name: str
    reason: str


@dataclass(frozen=True)
class Exported:
    """What an export did beside the edits.

    Attributes:
        skipped: the files of the base that it left out.
        notes: what else a user should know, one line each.
        written: what was seen of the weight files, where they were streamed.
        certificate: level `tensors`, where it was measured while they were.
    """

    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()
    written: tuple[WrittenFile, ...] = ()
    certificate: LevelCertificate | None = None


class RunningResult(Protocol):
    """An artefact, loaded from disk as its users load it."""

    def certify(self, progress: Progress) -> LevelCertificate:
        """Level `forward`: it runs as the hooked base does."""
        ...

    def answering(self) -> Answering:
        """It as a model that answers, with its base's tokenizer.

        Raises:
            BadInputError: the base has no tokenizer.
        """
        ...


class Exporter(Protocol):
    """Writes one kind of artefact, and proves it.

    Attributes:
        name: what `--as` calls it.
        routes: the ways that its artefact has for an edit, of `lowering.decide.Route`. With `insert` or `rehome` the
            lowering looks for more than the tensors that are there.
        exactness: how close the artefact comes to the hook, for `explain`; of the routes `fold` and `carry`.
        cost: what an edit costs at inference; likewise.
        card_library: `library_name` of its model card, such as "transformers" or "peft".
        highest_level: of the certificate: `forward` where `reload` gives what runs here, else `tensors`.
        default_level: what `bake` certifies unless told: `forward` where an export runs the model anyway.
        options: settings beside dtype and base that it knows.
        inserts_need_code: whether an inserted module makes the artefact one that needs `--trust-remote-code`.
        streams: whether an export looks at all of the base's values, certifies level `tensors` as it writes, and goes
            on with what a killed run of the same bake left.
        reads_fp8: whether it knows what FP8 weights with a scale a block are.
    """

    name: str
    routes: frozenset[Route]
    exactness: str
    cost: str
    card_library: str
    highest_level: Level
    default_level: Level
    options: frozenset[Option]
    inserts_need_code: bool
    streams: bool
    reads_fp8: bool

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the artefact can carry the edit at this slot without inserted modules, else the reason."""
        ...

    def check(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> None:
        """Refuse what `supports` cannot see, such as settings or a missing package; before anything is written.

        Raises:
            BadInputError: what is refused.
        """
        ...

    def bytes_needed(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> int:
        """About how many bytes the artefact takes on disk."""
        ...

    def export(
        self, base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
    ) -> Exported:
        """Write the artefact into the empty folder `out`.

        Args:
            base: the base model; only read.
            lowering: the way of every edit, none of them refused.
            out: the folder to write into.
            settings: what was asked for.
            progress: counts tensors.

        Raises:
            BadInputError: values that the artefact cannot hold, a full disk.
        """
        ...

    def certify_tensors(self, base: ModelFolder, lowering: Lowering, out: Path, progress: Progress) -> LevelCertificate:
        """Level `tensors`: everything in `out` against the formula and the base, read back from disk.

        Raises:
            BadInputError: a file that cannot be read.
        """
        ...

    def reload(
        self, base: ModelFolder, out: Path, lowering: Lowering, *, device: str, trust_remote_code: bool
    ) -> RunningResult:
        """The artefact as its users load it, for level `forward` and for answers.

        Raises:
            BadInputError: it cannot be run here, with the reason.
        """
        ...


class NeedsNoModel:
    """The part of an exporter that writes from tensors alone, without running the model, and has no options."""

    default_level: Level = "tensors"
    options: frozenset[Option] = frozenset()
    inserts_need_code: bool = True
    streams: bool = False
    reads_fp8: bool = False


class RunsElsewhere(NeedsNoModel):
    """The part of an exporter whose artefact does not run here: level `tensors` is all that it is certified at.

    Attributes:
        held: what OUT holds, why that does not run, and what to do, as the end of a sentence.
    """

    highest_level: Level = "tensors"
    held: str

    def reload(
        self, base: ModelFolder, out: Path, lowering: Lowering, *, device: str, trust_remote_code: bool
    ) -> RunningResult:
        """Refused.

        Raises:
            BadInputError: always.
        """
        del base, lowering, device, trust_remote_code
        raise BadInputError(f"{out} holds {self.held}")
