"""In which dtypes a provider computes: a graph in another one is no session at all."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMPUTES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"cpu": ("float32", "float16", "float64")})
"""What was tried. ONNX Runtime's CPU provider moves and converts bfloat16, and has no arithmetic in it. float16 it
computes in float32 where it has no kernel, so its results lie nearer to float32 than those of torch do."""


def supported_dtypes(provider: str) -> tuple[str, ...] | None:
    """The dtypes in which a causal model runs, None where that was not tried: on a GPU.

    Args:
        provider: as `open_session` takes it: "cpu", "cuda", "cuda:1", ...
    """
    return _COMPUTES.get(provider.partition(":")[0])


def check_dtype(provider: str, dtype: str) -> None:
    """Refuse before an export what no session of that provider would open.

    Args:
        provider: as above.
        dtype: "float32", "bfloat16", ..., in which the graph computes.

    Raises:
        BadInputError: the provider does not compute in it.
    """
    known = supported_dtypes(provider)
    if known is not None and dtype not in known:
        raise BadInputError(
            f"ONNX Runtime's {provider} provider does not compute in {dtype}: choose one of {', '.join(known)}"
        )
