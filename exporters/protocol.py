"""What an exporter is. Each kind of artefact is one file with one class of this shape, found by its name.

A third party adds one through an entry point of the group `alignez_bake.exporters` (see docs/exporters.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.certificate.verdict import Level, LevelCertificate
    from alignez_bake.edit import Edit
    from alignez_bake.language_model.loading import LoadedModel
    from alignez_bake.lowering.decide import Lowering, Refusal, Route
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class ExportSettings:
    """What a user asked of an artefact.

    Attributes:
        dtype: of all float tensors, such as "float32"; the stored dtypes where None.
        base_name: the base as the user named it, a folder or a hub id: what an adapter refers to.
    """

    dtype: str | None = None
    base_name: str = ""


@dataclass(frozen=True)
class SkippedFile:
    """A file of the base that is not in the result."""

    name: str
    reason: str


@dataclass(frozen=True)
class Exported:
    """What an export did beside the edits: the files of the base that it left out."""

    skipped: tuple[SkippedFile, ...] = ()


class Exporter(Protocol):
    """Writes one kind of artefact, and proves it.

    Attributes:
        name: what `--as` calls it.
        routes: the ways that its artefact has for an edit, of `lowering.decide.Route`. With `insert` or `rehome` the
            lowering looks for more than the tensors that are there.
        exactness: how close the artefact comes to the hook, for `explain`; of the routes `fold` and `carry`.
        cost: what an edit costs at inference; likewise.
        card_library: `library_name` of its model card, such as "transformers" or "peft".
        highest_level: of the certificate: `forward` where `reload` gives a model that runs here, else `tensors`.
    """

    name: str
    routes: frozenset[Route]
    exactness: str
    cost: str
    card_library: str
    highest_level: Level

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
    ) -> LoadedModel:
        """The artefact as its users load it, for level `forward`; its module tree has the base's paths.

        Raises:
            BadInputError: it cannot be run here, with the reason.
        """
        ...


class RunsElsewhere:
    """The part of an exporter whose artefact does not run here: level `tensors` is all that it is certified at.

    Attributes:
        held: what OUT holds, why that does not run, and what to do, as the end of a sentence.
    """

    highest_level: Level = "tensors"
    held: str

    def reload(
        self, base: ModelFolder, out: Path, lowering: Lowering, *, device: str, trust_remote_code: bool
    ) -> LoadedModel:
        """Refused.

        Raises:
            BadInputError: always.
        """
        del base, lowering, device, trust_remote_code
        raise BadInputError(f"{out} holds {self.held}")
