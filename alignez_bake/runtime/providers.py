"""Execution providers: said by name, there or refused, and proved to be the ones that run the graph.

ONNX Runtime falls back in three ways, none of which is an error to it: a session that cannot be made is made
again on the CPU; a provider that fails to start is left out (the GPU package lists CUDA on machines without a
GPU); and a node that a provider has no kernel for goes to the CPU. Each of them is refused here, unless the CPU
was asked for too.
"""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType


class Kind(NamedTuple):
    """A provider that the runner knows.

    Attributes:
        runtime_name: ONNX Runtime's name of it.
        device: its name of the memory that the provider computes in.
    """

    runtime_name: str
    device: str


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "cpu": Kind("CPUExecutionProvider", "cpu"),
        "cuda": Kind("CUDAExecutionProvider", "cuda"),
        "tensorrt": Kind("TensorrtExecutionProvider", "cuda"),
    }
)
"""Providers by the word that a user says."""

_ERRORS: Final = (
    "EngineError", "EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded",
    "NoModel", "NoSuchFile", "NotImplemented", "RuntimeException",
)  # fmt: skip


@dataclass(frozen=True)
class Provider:
    """A provider that was asked for.

    Attributes:
        kind: what it is.
        device_id: number of its device; 0 for the CPU.
    """

    kind: Kind
    device_id: int

    def argument(self) -> str | tuple[str, dict[str, str]]:
        """As `InferenceSession` takes it."""
        if self.kind.device == "cpu":
            return self.kind.runtime_name
        settings = {"device_id": str(self.device_id)}
        if self.kind is KINDS["cuda"]:
            # Unless told, its float32 products keep 10 bits of each factor: no graph would be what torch computes.
            settings["use_tf32"] = "0"
        return self.kind.runtime_name, settings


@dataclass(frozen=True)
class Placement:
    """Where the nodes of the optimised graph run; fused and folded ones are counted as what they became.

    Attributes:
        nodes: how many, by ONNX Runtime's name of the provider.
        elsewhere: of those that are not at the first provider, how many of each operator.
    """

    nodes: Mapping[str, int]
    elsewhere: Mapping[str, int]


def runtime_package() -> ModuleType:
    """The package `onnxruntime`, imported when it is first needed.

    Raises:
        BadInputError: it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BadInputError(
            f"running a graph needs ONNX Runtime, which cannot be imported ({error}): pip install "
            "'alignez-bake[cpu]', or 'alignez-bake[gpu]' for CUDA, never both, since they are one module"
        ) from None


def runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes without a common base, and Python's own two."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return (RuntimeError, ValueError, *(getattr(state, name) for name in _ERRORS if hasattr(state, name)))


def asked_providers(names: Sequence[str], available: Sequence[str]) -> list[Provider]:
    """Providers by their words, in order of preference.

    Args:
        names: "cpu", "cuda", "cuda:1", ... The CPU takes every node, so it comes last.
        available: ONNX Runtime's names of those that this installation has.

    Raises:
        BadInputError: none, an unknown one, one twice, one behind the CPU, several GPUs, or one that is not there.
    """
    if isinstance(names, str) or not names:
        raise BadInputError(f"providers {names!r}: a list of at least one of {', '.join(KINDS)} is needed")
    providers = [_asked(name, available) for name in names]
    kinds = [provider.kind for provider in providers]
    if len(set(kinds)) != len(kinds):
        raise BadInputError(f"providers {list(names)} name one twice")
    if KINDS["cpu"] in kinds[:-1]:
        raise BadInputError(f"providers {list(names)}: the CPU takes every node, so what follows it never runs")
    if len({provider.device_id for provider in providers if provider.kind.device != "cpu"}) > 1:
        raise BadInputError(f"providers {list(names)} name several GPUs, and a graph with its cache lies on one")
    return providers


def _asked(name: str, available: Sequence[str]) -> Provider:
    word, colon, number = name.partition(":")
    if word not in KINDS or (colon and (word == "cpu" or not (number.isascii() and number.isdigit()))):
        raise BadInputError(
            f"provider {name!r} is not known: {', '.join(KINDS)}, with ':N' behind it for the N-th device of a GPU"
        )
    kind = KINDS[word]
    if kind.runtime_name not in available:
        raise BadInputError(
            f"provider {name!r} is not there: this ONNX Runtime has {', '.join(available)}; 'alignez-bake[gpu]' "
            "brings CUDA, and ['cpu'] runs without it"
        )
    return Provider(kind, int(number or 0))


def check_started(asked: Sequence[Provider], started: Sequence[str], place: str) -> None:
    """Compare what was asked for with what the session says that it has.

    Raises:
        BadInputError: one of the asked ones did not start, or another comes first.
    """
    wanted = [provider.kind.runtime_name for provider in asked]
    if list(started[: len(wanted)]) != wanted:
        raise BadInputError(
            f"{place}: {', '.join(wanted)} was asked for, and ONNX Runtime started {', '.join(started) or 'none'}: "
            "check the driver and the CUDA libraries, or ask for ['cpu']"
        )


def read_placement(session: Any, first: Provider) -> Placement | None:  # noqa: ANN401 - has no stubs
    """Where the session's nodes run, None where this ONNX Runtime cannot say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    nodes: Counter[str] = Counter()
    elsewhere: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        operators = [node.op_type for node in part.get_nodes()]
        nodes[part.ep_name] += len(operators)
        if part.ep_name != first.kind.runtime_name:
            elsewhere.update(operators)
    return Placement(MappingProxyType(dict(nodes)), MappingProxyType(dict(elsewhere)))


def check_placement(asked: Sequence[Provider], placement: Placement, place: str) -> None:
    """Compare what was asked for with where the nodes are.

    Raises:
        BadInputError: the first provider runs nothing, or nodes went to one that was not asked for.
    """
    wanted = [provider.kind.runtime_name for provider in asked]
    strangers = [name for name in placement.nodes if name not in wanted]
    if strangers or not placement.nodes.get(wanted[0]):
        found = ", ".join(f"{count} at {name}" for name, count in placement.nodes.items())
        operators = ", ".join(f"{count} {name}" for name, count in placement.elsewhere.items())
        raise BadInputError(
            f"{place}: {', '.join(wanted)} was asked for, and of the graph's nodes {found or 'none'} would run "
            f"({operators or 'no operator elsewhere'}): ask for ['cpu'], or put 'cpu' behind the others to allow it"
        )
