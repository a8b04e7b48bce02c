"""ONNX Runtime as it is with a GPU, on a machine without: memory has a device, and the host cannot read CUDA's.

The graph runs on the CPU. Everything that the runner gives to ONNX Runtime or takes from it goes through values that
carry the device they would lie on; a read of device memory by the host, a cache that was bound elsewhere, or an
output that nobody bound fails, as it would on a GPU, or worse.
"""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import ClassVar

import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class DeviceValue:
    """An OrtValue that knows where it would lie."""

    def __init__(self, real, device):
        self.real, self.device = real, device

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape, element_type, device_type="cpu", device_id=0):
        return cls(_real_value.ortvalue_from_shape_and_type(shape, element_type), (device_type, device_id))

    def device_name(self):
        return self.device[0]

    def shape(self):
        return self.real.shape()

    def element_type(self):
        return self.real.element_type()

    def tensor_size_in_bytes(self):
        return self.real.tensor_size_in_bytes()

    def data_ptr(self):
        assert self.device[0] == "cpu", "the host read memory of the GPU: a crash there"
        return self.real.data_ptr()


class DeviceBinding:
    """An IOBinding that says where everything was bound."""

    def __init__(self, session):
        self.session, self.real = session, session.real.io_binding()
        self.inputs, self.outputs = {}, {}
        self.inputs_came, self.outputs_came = False, False

    def synchronize_inputs(self):
        self.inputs_came = True

    def synchronize_outputs(self):
        self.outputs_came = True

    def bind_cpu_input(self, name, array):
        self.inputs[name] = ("cpu", 0)
        self.real.bind_cpu_input(name, array)

    def bind_ortvalue_input(self, name, value):
        self.inputs[name] = value.device
        self.real.bind_ortvalue_input(name, value.real)

    def bind_output(self, name, device_type="cpu", device_id=0):
        self.outputs[name] = (device_type, device_id)
        self.real.bind_output(name)

    def get_outputs(self):
        assert self.outputs_came, "outputs were taken while they were still being copied"
        places = [self.session.lands.get(name, place) for name, place in self.outputs.items()]
        return [DeviceValue(value, place) for value, place in zip(self.real.get_outputs(), places, strict=True)]


class DeviceSession:
    """A session on a GPU.

    Attributes:
        started: its providers, which run everything.
        lands: where outputs come out against their binding.
        bindings: those that it was run with, in order.
    """

    started: ClassVar[tuple[str, ...]] = (CUDA, CPU)
    lands: ClassVar[dict[str, tuple[str, int]]] = {}

    def __init__(self, path, options, providers, enable_fallback):
        self.bindings = []
        self.real = _real_session(path, providers=[CPU])
        self.get_inputs, self.get_outputs = self.real.get_inputs, self.real.get_outputs

    def get_providers(self):
        return list(self.started)

    def get_provider_graph_assignment_info(self):
        return [SimpleNamespace(ep_name=self.started[0], get_nodes=lambda: [SimpleNamespace(op_type="MatMul")])]

    def io_binding(self):
        self.bindings.append(DeviceBinding(self))
        return self.bindings[-1]

    def run_with_iobinding(self, binding):
        assert binding.inputs_came, "the graph ran while its inputs were still being copied"
        self.real.run_with_iobinding(binding.real)

    def run(self, *_, **__):
        raise AssertionError("a run without binding copies the whole cache to the host and back")


_real_value, _real_session = onnxruntime.OrtValue, onnxruntime.InferenceSession


def install(monkeypatch, *, started=(CUDA, CPU), lands=MappingProxyType({})) -> None:
    """Put the stand-in in ONNX Runtime's place for one test."""
    made = type("Made", (DeviceSession,), {"started": started, "lands": lands})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(started))
    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    monkeypatch.setattr(onnxruntime, "OrtValue", DeviceValue)
