"""The compiled part of the package; everything else is said in pyproject.toml.

Without a C compiler the build goes on without it, and numpy computes the rows (docs/decisions/streaming.md).
"""

from setuptools import Extension, setup

_STABLE = "cp311"  # one build is for this Python and all later ones
_KERNEL = Extension(
    "alignez_bake.lowering._row_kernel",
    ["alignez_bake/lowering/_row_kernel.c"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    # A product and a sum that the source keeps apart stay apart: the bits are the same whatever compiles it.
    extra_compile_args=["-O3", "-ffp-contract=off"],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[_KERNEL], options={"bdist_wheel": {"py_limited_api": _STABLE}})
