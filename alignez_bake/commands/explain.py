"""`explain`: what would be folded, inserted or refused, and why; without edits, what a base allows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from alignez_bake.commands.bake import check_base
from alignez_bake.edit_file import read_edits
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.registry import DEFAULT_EXPORTER, exporter_named
from alignez_bake.hub.download import base_folder, edits_file
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import decisions_json
from alignez_bake.site import LEGAL_READS, SITE_DESCRIPTIONS, SITE_KINDS, Reads, Site, SiteKind

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder


@dataclass(frozen=True)
class SiteExplanation:
    """What a kind of site is in one base.

    Attributes:
        kind: the kind.
        description: what it means.
        available: whether this base has it.
        reads: what an edit there can read; those that fold, and `block` at writers, which never does.
        module: path of its map in layer 0, or in the first layer that has another one, or why there is none.
        shape: [d_out, d_in] of that map.
        has_bias: whether the map has a bias, without which no constant can be folded.
        post_norm: the norm after the map, if any: the edit comes before it.
    """

    kind: SiteKind
    description: str
    available: bool
    reads: tuple[Reads, ...]
    module: str
    shape: tuple[int, int] | None = None
    has_bias: bool | None = None
    post_norm: str | None = None


@dataclass(frozen=True)
class Explanation:
    """What a base allows, and with edits the way of each.

    Attributes:
        model_type: of the base.
        layers: number of decoder layers.
        sites: every kind of site.
        lowering: decisions for the edits, if any were given.
    """

    model_type: str
    layers: int
    sites: tuple[SiteExplanation, ...]
    lowering: Lowering | None

    def to_json(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        return {
            "model_type": self.model_type,
            "layers": self.layers,
            "sites": [asdict(site) for site in self.sites],
            "decisions": None if self.lowering is None else decisions_json(self.lowering.decisions),
        }


def explain(
    model: str | Path,
    edits: str | Path | None = None,
    *,
    artefact: str = DEFAULT_EXPORTER,
    allow_other_base: bool = False,
) -> Explanation:
    """Say what a base allows, and what would become of edits. Reads headers alone and runs nothing.

    Args:
        model: the base's folder.
        edits: `edits.safetensors` to decide about; none: the sites alone.
        artefact: name of the exporter that the decisions are for.
        allow_other_base: explain edits that were made for another base.

    Raises:
        BadInputError: a folder or file that cannot be read, or edits made for another base.
    """
    base = open_model_folder(base_folder(model))
    exporter = exporter_named(artefact)
    lowering = None
    if edits is not None:
        plan = read_edits(edits_file(edits))
        check_base(plan, base, allow_other_base=allow_other_base)
        lowering = lower(plan, base, exporter, code=True)
    return Explanation(
        base.architecture.model_type,
        base.num_layers,
        tuple(_explain_site(base, kind, layer) for kind in SITE_KINDS for layer in _layers_to_show(base, kind)),
        lowering,
    )


def _layers_to_show(base: ModelFolder, kind: SiteKind) -> list[int]:
    """Layer 0, and where layers differ in this kind of site (some without experts) the first of the other sort."""
    architecture = base.architecture
    maps = [architecture.sites_of(layer).get(kind) for layer in range(base.num_layers)]
    return [0, *[layer for layer, found in enumerate(maps) if found != maps[0]][:1]]


def _explain_site(base: ModelFolder, kind: SiteKind, layer: int) -> SiteExplanation:
    description = SITE_DESCRIPTIONS[kind]
    architecture = base.architecture
    site = Site(kind, None if kind == "embed" else layer)
    try:
        slot = find_slot(base, site)
    except BadInputError as error:
        return SiteExplanation(kind, description, False, (), str(error).split("; its sites are", maxsplit=1)[0])
    linear = architecture.sites_of(site.layer).get(kind)
    module = architecture.embed if kind == "embed" else architecture.layer_path(layer)
    return SiteExplanation(
        kind,
        description,
        True,
        architecture.legal_reads(site.layer).get(kind, LEGAL_READS[kind]),
        module if linear is None else architecture.module_path(site),
        None if slot.kind == "stream" else (slot.d_out, slot.d_in),
        None if slot.kind == "stream" else slot.bias is not None,
        None if linear is None else linear.post_norm,
    )
