"""The C core: one extension module, built against the limited API (3.11 and later)."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "tunnel._native",
            sources=sorted(glob("src/tunnel/native/*.c")),
            depends=sorted(glob("src/tunnel/native/*.h")),
            extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra"],
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("_GNU_SOURCE", None)],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
