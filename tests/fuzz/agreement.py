"""What the safetensors library reads from a file, to hold our readers against, and what our errors must be like."""

from __future__ import annotations

from safetensors import deserialize, safe_open


def library_tensors(path):
    """Dtype, shape and bytes of each tensor, by the library's two readers, and the metadata."""
    data = {name: bytes(tensor["data"]) for name, tensor in deserialize(path.read_bytes())}
    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        tensors = {name: (tensor.get_dtype(), tuple(tensor.get_shape()), data[name]) for name, tensor in slices.items()}
        return tensors, file.metadata() or {}


def assert_names(error, path):
    """An error is one printable line that names the file."""
    message = str(error)
    assert str(path) in message
    assert message.isprintable()


def assert_short(error, path):
    """An error is not as long as a file would have it."""
    assert len(str(error)) < 1000 + 2 * len(str(path))
