"""Compiles the one hot module, src/busdma/segments.py, if it can be compiled. Everything else is in pyproject.toml.

BUSDMA_COMPILE=auto     compile; where Cython or a C compiler is missing, install the same file as Python (default)
BUSDMA_COMPILE=require  compile, or fail
BUSDMA_COMPILE=never    install as Python

An editable install is always pure: a compiled module in the source tree would shadow the file that is being edited.
"""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODES = ("auto", "require", "never")
NO_SYMBOLS = ["-g0"] if os.name == "posix" else []  # debugging symbols are four fifths of the file
MODULE = Extension("busdma.segments", ["src/busdma/segments.py"], extra_compile_args=NO_SYMBOLS)
DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,  # the C types stand in segments.pxd; Python's int must not become a C int
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "freethreading_compatible": True,
}


class BuildOutsideTheTree(build_ext):
    """build_ext that never writes an extension module beside its source."""

    def finalize_options(self) -> None:
        """Leave nothing to compile where the outcome would land in the source tree."""
        super().finalize_options()
        if self.inplace or self.editable_mode:
            if mode == "require":
                sys.exit("busdma: an editable install is always pure; use BUSDMA_COMPILE=never, or install a wheel")
            self.extensions = []


def extensions(mode: str) -> list[Extension]:
    """What to compile. With "auto", a failure to translate or to compile leaves the Python file to do the work."""
    if mode == "never":
        return []
    try:
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError
    except ImportError as error:
        if mode == "require":
            sys.exit(f"busdma: BUSDMA_COMPILE=require, but Cython cannot be imported ({error}): install Cython>=3.1")
        print(f"busdma: no Cython ({error}): installing without the compiled module", file=sys.stderr)
        return []
    try:
        # build_dir keeps the generated C out of the source tree.
        found = cythonize([MODULE], compiler_directives=DIRECTIVES, build_dir="build/cython")
    except CompileError as error:
        if mode == "require":
            raise
        print(f"busdma: Cython failed ({error}): installing without the compiled module", file=sys.stderr)
        return []
    for extension in found:
        extension.optional = mode == "auto"  # cythonize() drops the flag, so it is set on what it returns
    return found


mode = os.environ.get("BUSDMA_COMPILE", "auto")
if mode not in MODES:
    sys.exit(f"busdma: BUSDMA_COMPILE is {mode!r}: use one of {', '.join(MODES)}")
setup(ext_modules=extensions(mode), cmdclass={"build_ext": BuildOutsideTheTree})
