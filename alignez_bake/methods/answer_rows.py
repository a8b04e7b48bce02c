"""What the methods with directions share: where they read, and the activations of good and bad answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.capture.spec import Reading, RowsSpec
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.capture.spec import AnswerSide
    from alignez_bake.methods.protocol import CaptureFunction

    Float64Array = NDArray[np.float64]

_PLAIN_OUTPUT: Final = Reading("plain", "output")


class AnswerRows(NamedTuple):
    """Activations at one site, one row a pair, pairs in the same order: good [n, d], bad [n, d], float64."""

    good: Float64Array
    bad: Float64Array


def mlp_write_sites(architecture: Architecture, layers: Sequence[int]) -> list[Site]:
    """The MLP's writer in each layer, where AlignEZ reads and edits.

    Raises:
        BadInputError: the architecture has no such map.
    """
    architecture.linear_site("mlp_write")
    return [Site("mlp_write", layer) for layer in layers]


def answer_rows(capture: CaptureFunction, sites: Sequence[Site]) -> dict[Site, AnswerRows]:
    """The output of each site at the last token of prompt + answer, no persona, for good and for bad answers.

    Raises:
        BadInputError: a site where an activation is not finite, or where all of one side are zero.
    """
    wanted: dict[Site, dict[AnswerSide, RowsSpec]] = {
        site: {side: RowsSpec(site, _PLAIN_OUTPUT, side, "last") for side in ("good", "bad")} for site in sites
    }
    recorded = capture([spec for specs in wanted.values() for spec in specs.values()]).rows
    found = {}
    for site, specs in wanted.items():
        rows = AnswerRows(recorded[specs["good"]].values, recorded[specs["bad"]].values)
        for side, values in zip(("good", "bad"), rows, strict=True):
            if not np.isfinite(values).all():
                raise BadInputError(f"{site}: activations of {side} answers are not finite: nothing can be fitted")
            if not values.any():
                raise BadInputError(f"{site}: activations of {side} answers are all zero: nothing can be fitted")
        found[site] = rows
    return found
