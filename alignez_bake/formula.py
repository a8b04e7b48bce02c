"""The one formula: what an edit adds to the output of its site, and how the edits of a site act together.

    y  <-  y + strength · ( g(r R + s) Lᵀ + c )          row vectors, as they lie in memory

It is computed here for numpy arrays (fold, streaming) and torch tensors (hooks) alike, and nowhere else: the code of
an inserted checkpoint is given the bodies of these functions word for word (`inserted/code.py`). So they use `@`,
`+`, `-`, `*`, the table of gates and each other, and no name from anywhere else. They take no step that does nothing,
since an inserted model pays for each of them at every token: no factor of 1, no mask but for edits at `last`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignez_bake.edit import Edit, EditTensors, Gate
    from alignez_bake.edit_plan import Group, SiteValues


def _identity(x: Any) -> Any:  # noqa: ANN401 - numpy array or torch tensor, as everywhere here
    return x


def _relu(x: Any) -> Any:  # noqa: ANN401
    return x.clip(0)


def _tanh(x: Any) -> Any:  # noqa: ANN401
    return x.tanh() if hasattr(x, "tanh") else np.tanh(x)


GATES: Final[Mapping[Gate, Callable[[Any], Any]]] = {"identity": _identity, "relu": _relu, "tanh": _tanh}


def edit_delta(tensors: EditTensors, gate: Gate, strength: float, read: Any) -> Any:  # noqa: ANN401
    """strength · ( g(r R + s) Lᵀ + c ): what one edit adds to the output of its site.

    Args:
        tensors: left [d_out, k], right [d_r, k], offset [k], bias [d_out], of the same array kind as `read`.
        gate: the non-linearity g.
        strength: multiplies L and c.
        read: r, [..., d_r].

    Returns:
        The added term, [..., d_out]; [d_out] for a pure shift, which does not depend on `read`.
    """
    left, right, offset, total = tensors
    if left is not None:
        hidden = read @ right if offset is None else read @ right + offset
        product = GATES[gate](hidden) @ left.mT
        total = product if total is None else product + total
    return total if strength == 1.0 else total * strength


def apply_groups(
    groups: Sequence[Group],
    values: SiteValues,
    tensors_of: Callable[[Edit], EditTensors],
    last_position: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """y + Σ_o w_o (E_o(y) - y): the edited output of a site.

    Args:
        groups: of `EditPlan.groups_at`: (objective o, its dial w_o, its entries in order, which make E_o).
        values: y [..., T, d_out] and what else is read, one array kind and dtype.
        tensors_of: the arrays of an edit in that kind and dtype.
        last_position: [T, 1], one at the last row and zero elsewhere; used by edits at `last` alone.

    Returns:
        The edited output, same shape as y. One group of weight 1 is E(y) itself.
    """
    output, map_input, block_input = values
    edited = output
    for _objective, weight, edits in groups:
        current = output
        for edit in edits:
            read = {"output": current, "input": map_input, "block": block_input}[edit.reads]
            delta = edit_delta(tensors_of(edit), edit.gate, edit.strength, read)
            current = current + (delta * last_position if edit.positions == "last" else delta)
        if len(groups) == 1 and weight == 1.0:
            return current
        edited = edited + weight * (current - output)
    return edited
