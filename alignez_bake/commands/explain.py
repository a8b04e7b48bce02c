"""`explain`: what would be folded, inserted or refused, and why; without edits, what a base allows.

With `feasibility` it also runs the base, and says whether alignment is likely to help.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.commands.asked_edits import check_base
from alignez_bake.edit_file import read_edits
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.registry import DEFAULT_EXPORTER, exporter_named
from alignez_bake.feasibility.settings import FeasibilitySettings
from alignez_bake.hub.download import base_folder, edits_file
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import decisions_json
from alignez_bake.site import LAYERLESS, LEGAL_READS, SITE_DESCRIPTIONS, SITE_KINDS, Reads, Site, SiteKind

if TYPE_CHECKING:
    from alignez_bake.commands.feasibility import BaseFeasibility
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


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
        feasibility: what the base says when it is run, if that was asked for.
    """

    model_type: str
    layers: int
    sites: tuple[SiteExplanation, ...]
    lowering: Lowering | None
    feasibility: BaseFeasibility | None = None

    def to_json(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        return {
            "model_type": self.model_type,
            "layers": self.layers,
            "sites": [asdict(site) for site in self.sites],
            "decisions": None if self.lowering is None else decisions_json(self.lowering.decisions),
            "feasibility": None if self.feasibility is None else self.feasibility.to_json(),
        }


def explain(
    model: str | Path,
    edits: str | Path | None = None,
    *,
    artefact: str = DEFAULT_EXPORTER,
    allow_other_base: bool = False,
    feasibility: bool = False,
    pairs: str | Path | None = None,
    queries: str | Path | None = None,
    objective: str | None = None,
    objectives_file: str | Path | None = None,
    prompt_template: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    batch_size: int = 64,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Explanation:
    """Say what a base allows, and what would become of edits. Reads headers alone, and runs nothing unless asked to.

    Args:
        model: the base's folder.
        edits: `edits.safetensors` to decide about; none: the sites alone.
        artefact: name of the exporter that the decisions are for.
        allow_other_base: explain edits that were made for another base.
        feasibility: run the base, and say whether alignment is likely to help; what follows is for that alone.
        pairs: a file of pairs; the base writes some, which are not kept, unless given.
        queries: a file of queries for these; those that the project ships unless given.
        objective: `name[=weight],...`; `helpful`, or with pairs all that they have, unless given.
        objectives_file: objectives of the user's own.
        prompt_template: how a query becomes a prompt; see `prompts.prompt_form`.
        device: where the model runs.
        seed: of everything that is sampled.
        batch_size: texts that run together.
        trust_remote_code: passed to transformers' loader.
        progress: where to say how far it is.

    Raises:
        BadInputError: a folder or file that cannot be read, edits made for another base, or anything that
            `feasibility` refuses, such as too few pairs.
    """
    settings = FeasibilitySettings(
        None if pairs is None else Path(pairs),
        None if queries is None else Path(queries),
        objective,
        None if objectives_file is None else Path(objectives_file),
        prompt_template,
        device,
        seed,
        batch_size,
        trust_remote_code,
    )
    settings.check(runs=feasibility)
    base = open_model_folder(base_folder(model, trust_remote_code=trust_remote_code))
    exporter = exporter_named(artefact)
    lowering = None
    if edits is not None:
        plan = read_edits(edits_file(edits))
        check_base(plan, base, allow_other_base=allow_other_base)
        lowering = lower(plan, base, exporter, code=True)
    found = None
    if feasibility:
        from alignez_bake.commands.feasibility import assess_base  # noqa: PLC0415 - else nothing is run: no torch

        found = assess_base(base, settings, progress)
    return Explanation(
        base.architecture.model_type,
        base.num_layers,
        tuple(_explain_site(base, kind, layer) for kind in SITE_KINDS for layer in _layers_to_show(base, kind)),
        lowering,
        found,
    )


def _layers_to_show(base: ModelFolder, kind: SiteKind) -> list[int]:
    """Layer 0, and where layers differ in this kind of site (some without experts) the first of the other sort."""
    architecture = base.architecture
    maps = [architecture.sites_of(layer).get(kind) for layer in range(base.num_layers)]
    return [0, *[layer for layer, found in enumerate(maps) if found != maps[0]][:1]]


def _explain_site(base: ModelFolder, kind: SiteKind, layer: int) -> SiteExplanation:
    description = SITE_DESCRIPTIONS[kind]
    architecture = base.architecture
    site = Site(kind, None if kind in LAYERLESS else layer)
    try:
        slot = find_slot(base, site)
    except BadInputError as error:
        return SiteExplanation(kind, description, False, (), str(error).split("; its sites are", maxsplit=1)[0])
    linear = architecture.find_linear(site.kind, site.layer)
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
