"""Where an edit applies: a kind of place in the model, and the layer it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from alignez_bake.errors import BadInputError

SiteKind = Literal[
    "attn_write",
    "mlp_write",
    "mlp_gate",
    "mlp_up",
    "attn_q",
    "attn_k",
    "attn_v",
    "residual",
    "embed",
    "lm_head",
]
Reads = Literal["output", "input", "block"]

SITE_KINDS: Final[tuple[SiteKind, ...]] = get_args(SiteKind)
LAYERLESS: Final[frozenset[SiteKind]] = frozenset({"embed", "lm_head"})
"""Kinds of which a model has one."""

# `input` needs a linear map whose input it is; `block` is the input of the attention or MLP module
# that a writer ends. The residual stream and the embedding are no maps of either sort.
LEGAL_READS: Final[dict[SiteKind, tuple[Reads, ...]]] = {
    "attn_write": ("output", "input", "block"),
    "mlp_write": ("output", "input", "block"),
    "mlp_gate": ("output", "input"),
    "mlp_up": ("output", "input"),
    "attn_q": ("output", "input"),
    "attn_k": ("output", "input"),
    "attn_v": ("output", "input"),
    "residual": ("output",),
    "embed": ("output",),
    "lm_head": ("output", "input"),
}

SITE_DESCRIPTIONS: Final[dict[SiteKind, str]] = {
    "attn_write": "output of the attention writer (o_proj), before any post-norm",
    "mlp_write": "output of the MLP writer (down_proj, or the whole MoE block), before any post-norm",
    "mlp_gate": "output of the gate of a gated MLP (gate_proj), before its activation",
    "mlp_up": "output of up_proj",
    "attn_q": "output of the query projection",
    "attn_k": "output of the key projection",
    "attn_v": "output of the value projection",
    "residual": "output of the decoder layer",
    "embed": "output of the token embedding module (gemma's scale within it)",
    "lm_head": "logits, before any factor or soft cap; its input is what the final norm gives",
}


@dataclass(frozen=True, order=True)
class Site:
    """One place of the model whose output an edit changes.

    Attributes:
        kind: what the place is; TransformerLens calls `attn_write` and `mlp_write` `attn_out` and `mlp_out`.
        layer: decoder layer, counted from 0; None for `embed` and `lm_head`.
    """

    kind: SiteKind
    layer: int | None = None

    def __post_init__(self) -> None:
        """Refuse kinds that are unknown and layers that make no sense.

        Raises:
            BadInputError: unknown kind, layer missing, negative, not an integer, or given where the model
                has one such place.
        """
        if self.kind not in SITE_KINDS:
            raise BadInputError(f"site kind {self.kind!r} is unknown: use one of {', '.join(SITE_KINDS)}")
        if self.kind in LAYERLESS:
            if self.layer is not None:
                raise BadInputError(f"site {self.kind!r} has no layer, but layer {self.layer!r} was given")
        elif not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 0:
            raise BadInputError(
                f"site {self.kind!r} has layer {self.layer!r}: it needs a decoder layer, an integer from 0"
            )

    def __str__(self) -> str:
        """Short form for tables and messages, such as `attn_write.3`."""
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"
