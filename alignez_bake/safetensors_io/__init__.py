"""Safetensors files without torch: a strict lazy reader, a writer, fingerprints, names of tensors.

Files are input that nobody vouches for: whatever a file says is bounded by the file itself.
"""

from alignez_bake.safetensors_io.dtypes import cast_once, file_dtype_of, is_plain_float, numpy_dtype_of
from alignez_bake.safetensors_io.fingerprint import config_sha256, tensors_sha256
from alignez_bake.safetensors_io.header import Header, TensorEntry, read_header
from alignez_bake.safetensors_io.index import rewrite_index
from alignez_bake.safetensors_io.names import resolve_key
from alignez_bake.safetensors_io.reader import TensorFolder, open_folder
from alignez_bake.safetensors_io.writer import write_tensors

__all__ = [
    "Header",
    "TensorEntry",
    "TensorFolder",
    "cast_once",
    "config_sha256",
    "file_dtype_of",
    "is_plain_float",
    "numpy_dtype_of",
    "open_folder",
    "read_header",
    "resolve_key",
    "rewrite_index",
    "tensors_sha256",
    "write_tensors",
]
