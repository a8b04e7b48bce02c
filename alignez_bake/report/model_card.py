"""The model card of a result: its README.md, with metadata that the hub understands.

The same result gives the same bytes. Names, settings and texts of others go through `markdown`, so that none of them
becomes markup.
"""

from __future__ import annotations

import json
import shlex
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.certificate.verdict import main_figures
from alignez_bake.hub.download import cached_repo
from alignez_bake.report.card_metadata import card_yaml, read_base_card
from alignez_bake.report.loading_text import intro, loading
from alignez_bake.report.markdown import code, escaped, fenced, table
from alignez_bake.report.record import tool_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignez_bake.certificate.verdict import LevelCertificate
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.report.card_metadata import BaseCard

CARD_SAMPLES: Final = 3
"""Samples that a card has room for."""
_CITATION: Final = """@misc{adila2024alignez,
  title = {Is Free Self-Alignment Possible?},
  author = {Dyah Adila and Changho Shin and Yijing Zhang and Frederic Sala},
  year = {2024},
  eprint = {2406.03642},
  archivePrefix = {arXiv}
}"""

_OWN_JUDGEMENT: Final = (
    "The base wrote and judged its own preferences, without labels: where its behaviour under a persona is not what "
    "you want, neither is this one's."
)


def model_card(
    name: str,
    base: ModelFolder,
    lowering: Lowering,
    levels: Sequence[LevelCertificate],
    *,
    artefact: str = "checkpoint",
    needs_code: bool = False,
    base_id: str | None = None,
    library: str | None = None,
    dtype: str | None = None,
    flags: Sequence[str] = (),
    samples: Sequence[tuple[str, str, str]] = (),
) -> str:
    """The card's text.

    Args:
        name: of the result folder.
        base: the base model; licence and languages come from its own card.
        lowering: what was done.
        levels: the certificate's levels.
        artefact: name of the exporter.
        needs_code: whether the result is loaded with `trust_remote_code=True`.
        base_id: the base's name on the hub, if it has one.
        library: `library_name` of the metadata; unless given, by the artefact.
        dtype: of all weights, if another than the base's was asked for.
        flags: what else was asked for, as words of a command.
        samples: prompt, the base's answer and the aligned one's.
    """
    card = read_base_card(base.path)
    metadata = card_yaml(base, card, artefact=artefact, needs_code=needs_code, base_id=base_id, library=library)
    base_name = base_id or base.path.resolve().name
    repo = cached_repo(base.path)
    revision = None if repo is None or base_id is None else repo.revision
    pinned = base_name if revision is None else f"{base_name}@{revision}"
    words = [*_bake_words(pinned, artefact, dtype, needs_code=needs_code), *flags]
    sections = [
        f"---\n{metadata}\n---",
        f"# {escaped(name)}",
        intro(artefact, base_name, base.architecture.model_type, len(lowering.plan.edits), needs_code=needs_code),
        f"## How to load it\n\n{loading(name, base_name, artefact, needs_code=needs_code, revision=revision)}",
        f"## What was done\n\n{_done(lowering, card)}",
        f"## Certificate\n\n{_certificate(levels)}",
        f"## Limits\n\n{_limits(lowering, artefact, needs_code=needs_code)}",
        *([f"## Samples\n\n{_samples(samples)}"] if samples else []),
        f"## How to make it again\n\n{_reproduction(lowering, words)}",
        f"## Citation\n\nThe method follows AlignEZ:\n\n{fenced(_CITATION, 'bibtex')}",
    ]
    return "\n\n".join(sections) + "\n"


def _done(lowering: Lowering, card: BaseCard) -> str:
    plan = lowering.plan
    dials = ", ".join(f"{name} x {plan.weights.get(name, 1.0):g}" for name in plan.objectives)
    facts = [
        ("made by", tool_name()),
        ("method", str(plan.provenance.get("method", "edits of the user's own"))),
        ("settings", _settings(plan.provenance.get("settings"))),
        ("seed", str(plan.provenance.get("seed", "none recorded"))),
        ("objectives", dials or "none named"),
        ("sites", _sites(plan.edits)),
    ]
    grouped: dict[tuple[str, str, str, str], list[Edit]] = {}
    for decision in lowering.decisions:
        key = (decision.route, decision.reason, decision.exactness, decision.cost)
        grouped.setdefault(key, []).append(decision.edit)
    rows = [(route, _sites(edits), *rest) for (route, *rest), edits in grouped.items()]
    notes = ["Every edit is listed in `alignez/alignez.json`; the edits themselves are `alignez/edits.safetensors`."]
    if card.problem is not None:
        notes.append(f"Licence and language may be incomplete here: {escaped(card.problem)}. See the base's own card.")
    return "\n\n".join([
        table(("", ""), facts),
        table(("route", "edits", "reason", "exactness", "cost"), rows),
        " ".join(notes),
    ])  # fmt: skip


def _settings(settings: Any) -> str:  # noqa: ANN401 - JSON of any kind
    if not isinstance(settings, dict) or not settings:
        return "none recorded"
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items())


def _sites(edits: Sequence[Edit]) -> str:
    """`attn_write 0-5, 7`: the layers of each kind, runs of them as ranges."""
    layers: dict[str, set[int]] = {}
    for edit in edits:
        layers.setdefault(edit.site.kind, set()).update([] if edit.site.layer is None else [edit.site.layer])
    return "; ".join(" ".join(filter(None, (kind, ", ".join(_runs(found))))) for kind, found in layers.items())


def _runs(numbers: set[int]) -> Iterator[str]:
    # Consecutive numbers have the same difference to their place in the list.
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        values = [value for _, value in run]
        yield f"{values[0]}-{values[-1]}" if len(values) > 1 else str(values[0])


def _certificate(levels: Sequence[LevelCertificate]) -> str:
    if not levels:
        return "Nothing was measured."
    rows = [row for level in levels for row in _figures(level)]
    return (
        f"{table(('level', 'figure', 'value'), rows)}\n\n"
        "`tensors` compares what is stored with the formula, and everything else with the base; `forward` runs it "
        "against the base with hooks. All figures are in `alignez/certificate.json`, and "
        "`alignez-bake verify` measures them again."
    )


def _figures(level: LevelCertificate) -> Iterator[tuple[str, str, str]]:
    """The verdict, the reasons, and the figures that the certificate itself says."""
    yield level.level, "verdict", level.verdict
    for reason in level.reasons:
        yield level.level, "reason", reason
    for name, value in main_figures(level):
        yield level.level, name, value


def _limits(lowering: Lowering, artefact: str, *, needs_code: bool) -> str:
    edits = lowering.plan.edits
    limits = [_OWN_JUDGEMENT]
    if needs_code:
        limits.append(
            "Load it by the Auto classes and with `trust_remote_code=True`. The base's own class called directly, such "
            "as `LlamaForCausalLM.from_pretrained`, would load the **unedited** model; `alignez-bake verify` tells."
        )
    elif artefact == "checkpoint" or (artefact in {"onnx", "onnx-genai"} and not lowering.inserts):
        limits.append("The edits act at every position, prompt included, because weights do.")
    if any(edit.positions == "last" for edit in edits):
        limits.append(
            "Some edits act at the last position of each forward call only. A server that cuts prompts into chunks "
            "edits the last token of each chunk, and one that decodes speculatively edits only the last of the "
            "tokens that it checks at once: both then answer differently from `generate`."
        )
    if any(edit.gate != "identity" for edit in edits) and not needs_code and artefact == "checkpoint":
        limits.append("Edits with a gate are not linear; the decisions above say how close this comes to them.")
    if artefact in {"adapter", "gguf", "edits"}:
        limits.append("It fits the base that it was made for, and no other of the same shape.")
    return "\n".join(f"- {limit}" for limit in limits)


def _samples(samples: Sequence[tuple[str, str, str]]) -> str:
    parts = []
    for number, (prompt, before, after) in enumerate(samples, start=1):
        parts += [
            f"**{number}.** Prompt:\n\n{fenced(prompt)}",
            f"The base:\n\n{fenced(before)}",
            f"Aligned:\n\n{fenced(after)}",
        ]
    return "\n\n".join(parts)


def _bake_words(base_name: str, artefact: str, dtype: str | None, *, needs_code: bool) -> list[str]:
    """The command that makes the same result from its edits."""
    words = ["alignez-bake", "bake", "--model", base_name, "--edits", "alignez/edits.safetensors", "--out", "OUT"]
    words += ["--as", artefact] if artefact != "checkpoint" else []
    words += ["--dtype", dtype] if dtype is not None else []
    words += ["--trust-remote-code"] if needs_code else []
    return words


def _reproduction(lowering: Lowering, words: Sequence[str]) -> str:
    plan = lowering.plan
    parts = [
        "From the edits, byte for byte with the same versions (`alignez/alignez.json` lists them):",
        fenced(shlex.join(words), "sh"),
    ]
    settings = plan.provenance.get("settings")
    if "method" in plan.provenance and isinstance(settings, dict):
        recorded = {name: plan.provenance[name] for name in ("method", "settings", "seed") if name in plan.provenance}
        parts += [
            f"The edits were fitted by {code(tool_name())} with",
            fenced(json.dumps(recorded, indent=2, ensure_ascii=False), "json"),
        ]
    return "\n\n".join(parts)
