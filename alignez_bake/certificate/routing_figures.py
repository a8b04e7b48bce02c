"""What the certificate of a mixture of experts says of its routers, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignez_bake.certificate.routing import RoutingFigures


def routing_rows(figures: RoutingFigures | None) -> list[tuple[str, str]]:
    """Name and value of each figure; nothing of a dense model."""
    if figures is None:
        return []
    rows = [("experts", f"chosen by {figures.chosen_by} in all compared runs")]
    for entry, greedy in zip(figures.comparisons, figures.greedy, strict=True):
        batch = f"batch {entry.batch_size}"
        flipped = round(entry.flipped_share * entry.choices)
        agreement = f"routers' logits error {entry.logits_error:.1e} (bound {entry.logits_bound:.1e})"
        flips = f"{flipped} of {entry.choices} would have been others"
        rows.append((f"choices of experts, {batch}", f"{flips}; {agreement}"))
        left_out = f"{greedy.left_out} of {greedy.prompts} prompts"
        rows.append((f"greedy tokens differ after a flipped choice, {batch}", left_out))
    return rows
