"""Providers are the ones that were asked for, or nothing runs.

No machine of the tests needs a GPU. Two stand-ins take CUDA's place: AzureExecutionProvider, which every wheel
for the CPU has, starts, comes first, and takes no node of such a graph, so ONNX Runtime's own fallback of nodes
is what is met; and a session that says what the GPU package says on a machine without a GPU.
"""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import onnxruntime
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import open_session, providers
from alignez_bake.runtime.providers import KINDS, Kind, Placement, Provider, asked_providers, check_placement
from tests.runtime.graphs import causal_model, saved

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
AVAILABLE = ["TensorrtExecutionProvider", CUDA, CPU]


@pytest.fixture
def graph(tmp_path):
    return saved(causal_model(), tmp_path)


@pytest.fixture
def azure(monkeypatch):
    """A provider that is there and has no kernels, by a word of its own."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no AzureExecutionProvider")
    kinds = {**KINDS, "azure": Kind("AzureExecutionProvider", "cpu")}
    monkeypatch.setattr(providers, "KINDS", MappingProxyType(kinds))


def test_the_cpu_runs_every_node_and_says_so(graph):
    model = open_session(graph, ["cpu"])
    assert model.session.get_providers() == [CPU]
    assert model.placement is not None
    assert set(model.placement.nodes) == {CPU}
    assert model.placement.nodes[CPU] > 10
    assert not model.placement.elsewhere


def test_a_provider_that_is_not_there_names_those_that_are(graph, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(BadInputError, match=rf"provider 'cuda' is not there: this ONNX Runtime has {CPU}"):
        open_session(graph, ["cuda"])


def test_words_become_providers_in_their_order():
    asked = asked_providers(["tensorrt:1", "cuda:1", "cpu"], AVAILABLE)
    assert [provider.argument() for provider in asked] == [
        ("TensorrtExecutionProvider", {"device_id": "1"}), (CUDA, {"device_id": "1", "use_tf32": "0"}), CPU
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one of cpu, cuda, tensorrt"),
        ("cuda", "a list of at least one"),
        (["gpu"], "'gpu' is not known"),
        (["CUDAExecutionProvider"], "is not known"),
        (["cuda:"], "is not known"),
        (["cuda:-1"], "is not known"),
        (["cpu:0"], "is not known"),
        (["cuda", "cuda:1"], "name one twice"),
        (["tensorrt", "cuda:1"], "name several GPUs"),
        (["cpu", "cuda"], "what follows it never runs"),
    ],
)
def test_words_that_make_no_sense_are_refused(names, message):
    with pytest.raises(BadInputError, match=message):
        asked_providers(names, AVAILABLE)


def test_nodes_that_fall_to_the_cpu_are_refused_by_onnx_runtime_itself(graph, azure):
    """The session's own switch: nothing but a message would show it otherwise."""
    with pytest.raises(BadInputError, match="fallback to CPU EP has been explicitly disabled"):
        open_session(graph, ["azure"])


def test_the_stand_in_really_falls_back(graph):
    """Asked in the usual way, it comes first and computes nothing, so the tests above and below prove something."""
    session = onnxruntime.InferenceSession(str(graph), providers=["AzureExecutionProvider", CPU])
    assert session.get_providers()[0] == "AzureExecutionProvider"


def test_a_first_provider_without_a_node_is_refused_though_the_cpu_was_allowed(graph, azure):
    with pytest.raises(BadInputError, match=f"of the graph's nodes [0-9]+ at {CPU} would run"):
        open_session(graph, ["azure", "cpu"])


class StandIn:
    """A session as the GPU package makes it; what it says is set by the test."""

    started = (CUDA, CPU)
    parts = MappingProxyType({CUDA: ["MatMul"]})

    def __init__(self, path, options, **arguments):
        StandIn.options, StandIn.arguments = options, arguments
        self._real = _real(path, providers=[CPU])

    def get_providers(self):
        return self.started

    def get_provider_graph_assignment_info(self):
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=k) for k in kinds])
            for name, kinds in self.parts.items()
        ]

    def __getattr__(self, name):
        return getattr(self._real, name)


_real = onnxruntime.InferenceSession


@pytest.fixture
def stand_in(monkeypatch):
    """The GPU package: CUDA is listed, whether there is a GPU or not."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    made = type("Made", (StandIn,), {})
    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    return made


def entry(name: str) -> str | None:
    try:
        return StandIn.options.get_session_config_entry(name)
    except RuntimeError:
        return None


def test_cuda_alone_switches_the_fallbacks_off(graph, stand_in):
    model = open_session(graph, ["cuda:2"])
    assert StandIn.arguments == {"providers": [(CUDA, {"device_id": "2", "use_tf32": "0"})], "enable_fallback": 0}
    assert entry("session.disable_cpu_ep_fallback") == "1"
    assert (model.provider.kind.device, model.provider.device_id) == ("cuda", 2)


def test_cuda_and_cpu_leave_the_nodes_free_and_count_them(graph, stand_in):
    stand_in.parts = {CUDA: ["MatMul", "MatMul"], CPU: ["Shape", "Gather", "Shape"]}
    model = open_session(graph, ["cuda", "cpu"])
    assert StandIn.arguments["enable_fallback"] == 0
    assert entry("session.disable_cpu_ep_fallback") is None
    assert model.placement == Placement({CUDA: 2, CPU: 3}, {"Shape": 2, "Gather": 1})


@pytest.mark.parametrize("names", [["cuda"], ["cuda", "cpu"]])
@pytest.mark.parametrize("started", [(CPU,), ()])
def test_a_cuda_that_did_not_start_is_refused_even_where_the_cpu_was_allowed(graph, stand_in, names, started):
    stand_in.started = started
    with pytest.raises(BadInputError, match=f"{CUDA}.* was asked for, and ONNX Runtime started"):
        open_session(graph, names)


def test_a_node_at_a_provider_that_nobody_asked_for_is_refused(graph, stand_in):
    """Whatever the switch did: an ONNX Runtime that ignores it is caught by the count."""
    stand_in.parts = {CUDA: ["MatMul"], CPU: ["Softmax"]}
    with pytest.raises(BadInputError, match=f"1 at {CPU} would run \\(1 Softmax\\)"):
        open_session(graph, ["cuda"])


def test_an_onnx_runtime_that_cannot_count_says_so(graph, stand_in, monkeypatch):
    """Older releases: nothing is made up; CUDA alone still relies on the session's switch."""

    def missing(self, name):
        if name == "get_provider_graph_assignment_info":
            raise AttributeError(name)
        return getattr(self._real, name)

    monkeypatch.delattr(StandIn, "get_provider_graph_assignment_info")
    monkeypatch.setattr(StandIn, "__getattr__", missing)
    assert open_session(graph, ["cuda", "cpu"]).placement is None
    assert open_session(graph, ["cuda"]).placement is None
    assert entry("session.disable_cpu_ep_fallback") == "1"


def test_the_error_of_a_session_is_one_line_of_ours(graph, stand_in, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(BadInputError, match=r"cannot run it on \['cuda'\] \(no kernel image is available\)"):
        open_session(graph, ["cuda"])


def test_no_placement_is_not_a_placement():
    with pytest.raises(BadInputError, match="nodes none would run"):
        check_placement([Provider(KINDS["cuda"], 0)], Placement({}, {}), "m")


def test_a_folder_with_one_graph_is_its_graph(graph):
    assert open_session(graph.parent, ["cpu"]).path == graph


def test_a_folder_with_two_graphs_or_none_is_refused(graph, tmp_path):
    saved(causal_model(), graph.parent, "other.onnx")
    with pytest.raises(BadInputError, match=r"2 \.onnx files \(model\.onnx, other\.onnx\)"):
        open_session(graph.parent, ["cpu"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match=r"0 \.onnx files \(none\)"):
        open_session(tmp_path / "empty", ["cpu"])
