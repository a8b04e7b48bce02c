"""Files as values, and what a writer left behind."""

from alignez_bake.safetensors_io import read_header
from alignez_bake.safetensors_io.file_access import read_tensor


def read_all(path):
    header = read_header(path)
    return {name: read_tensor(header, entry) for name, entry in header.entries.items()}


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes()


def leftovers(folder):
    return [path.name for path in folder.iterdir() if "partial" in path.name]
