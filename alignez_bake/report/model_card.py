"""The model card of a result: its README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.report.record import tool_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.certificate.verdict import LevelCertificate
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- alignez-bake
- self-alignment
---

# {name}

This is `{base}` ({model_type}) with {edits} low-rank edits folded into its weights by {tool}. It is an ordinary
checkpoint: it needs no hooks, no extra code and no flag.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

## What was done

Method: {method}. Objectives: {objectives}. Sites: {sites}. Every edit, with the way it took and why, is listed in
`alignez/alignez.json`; the edits themselves are in `alignez/edits.safetensors`. The base's own card, where it had
one, is `alignez/base_README.md`.

## How close it is to the hooked model

{certificate}

All figures are in `alignez/certificate.json`; `alignez-bake verify {name} --model BASE` measures them again.

## Limits

The base model judged and wrote its own preferences, without labels; where its own behaviour under a persona is not
what you want, neither is this model's. The method follows AlignEZ (Adila, Shin, Zhang, Sala: "Is Free Self-Alignment
Possible?", arXiv 2406.03642).
"""


def model_card(name: str, base: ModelFolder, lowering: Lowering, levels: Sequence[LevelCertificate]) -> str:
    """The card's text.

    Args:
        name: of the result folder.
        base: the base model.
        lowering: what was done.
        levels: the certificate's levels.
    """
    plan = lowering.plan
    kinds = ", ".join(dict.fromkeys(site.kind for site in plan.sites))
    certificate = "\n".join(f"- Level `{entry.level}`: {entry.verdict}.{_reasons(entry)}" for entry in levels)
    return _CARD.format(
        name=name,
        base=base.path.resolve().name,
        model_type=base.architecture.model_type,
        edits=len(plan.edits),
        tool=tool_name(),
        method=plan.provenance.get("method", "edits of the user's own"),
        objectives=", ".join(plan.objectives) or "none named",
        sites=kinds,
        certificate=certificate,
    )


def _reasons(level: LevelCertificate) -> str:
    return "".join(f"\n  - {reason}" for reason in level.reasons)
