"""The methods by the name that the command line uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.methods.alignez_v1 import ALIGNEZ_V1
from alignez_bake.methods.alignez_v2 import ALIGNEZ_V2
from alignez_bake.methods.ccs import CCS
from alignez_bake.methods.contrastive_decoding import CONTRASTIVE_DECODING
from alignez_bake.methods.mean_difference import MEAN_DIFFERENCE
from alignez_bake.methods.protocol import ReadsOut, ReducedRank
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.methods.shift import SHIFT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.methods.protocol import Method, MethodSettings

METHODS: Final[Mapping[str, Method]] = {
    "ridge": RIDGE,
    "residual_ridge": RESIDUAL_RIDGE,
    "contrastive_decoding": CONTRASTIVE_DECODING,
    "alignez_v1": ALIGNEZ_V1,
    "alignez_v2": ALIGNEZ_V2,
    "ccs": CCS,
    "mean_difference": MEAN_DIFFERENCE,
    "shift": SHIFT,
}
JOINT_METHODS: Final = ("ridge", "residual_ridge")
"""Those that weigh each token by how far the personas disagree there, which `methods.joint` shares out."""


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        BadInputError: there is none.
    """
    if name in METHODS:
        return METHODS[name]
    raise BadInputError(f"method {name!r} is unknown: use one of {', '.join(METHODS)}, or auto")


def check_offered(method: Method, settings: MethodSettings) -> None:
    """Refuse settings that the method has no use for, rather than ignore them.

    Raises:
        BadInputError: the message names the methods that have a use for them.
    """
    if settings.gated and not method.has_gates:
        gated = ", ".join(name for name, known in METHODS.items() if known.has_gates)
        raise BadInputError(
            f"method {method.name!r} has no gates, so --gated means nothing for it: use it with {gated}"
        )
    if settings.top_layers is not None and not method.scores_layers:
        scoring = ", ".join(name for name, known in METHODS.items() if known.scores_layers)
        raise BadInputError(
            f"method {method.name!r} does not score layers, so --top-layers means nothing for it: use it with "
            f"{scoring}, or name the --layers"
        )
    if settings.penalty is not None and not isinstance(method, ReducedRank):
        penalised = ", ".join(name for name, known in METHODS.items() if isinstance(known, ReducedRank))
        raise BadInputError(
            f"method {method.name!r} is no penalised fit, so --penalty means nothing for it: use it with {penalised}"
        )
    if settings.untie and not isinstance(method, ReadsOut):
        heads = ", ".join(name for name, known in METHODS.items() if isinstance(known, ReadsOut))
        raise BadInputError(
            f"method {method.name!r} leaves the head alone, so --untie means nothing for it: use it with {heads}"
        )


def check_joint(method: Method) -> None:
    """Refuse a joint fit by a method that has no weights of tokens.

    Raises:
        BadInputError: the message names the methods that have.
    """
    if method.name not in JOINT_METHODS:
        raise BadInputError(
            f"method {method.name!r} does not weigh tokens, so --joint means nothing for it: use it with "
            f"{', '.join(JOINT_METHODS)}"
        )
