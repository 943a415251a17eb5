# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a build environment has its own path
import build_ane


class BuildExt(build_ext):
    """On Linux Python's compiler takes no Objective-C: the one file of it goes to clang."""

    def build_extensions(self):
        if sys.platform.startswith("linux"):
            self._divert_objc(self.compiler)
        super().build_extensions()

    @staticmethod
    def _divert_objc(compiler):
        plain = compiler._compile

        def compile_one(obj, src, ext, cc_args, extra_postargs, pp_opts):
            usual = compiler.compiler_so
            try:
                if ext == ".m":
                    compiler.compiler_so = build_ane.objc_compiler()
                plain(obj, src, ext, cc_args, extra_postargs, pp_opts)
            finally:
                compiler.compiler_so = usual

        compiler._compile = compile_one


setup(
    cffi_modules=["build_cpu.py:ffibuilder", "build_ane.py:ffibuilder"],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
