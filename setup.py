# SPDX-License-Identifier: Apache-2.0
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a build environment has its own path
import build_ane


class BuildExt(build_ext):
    """Compiles C files side by side. On Linux Python's compiler takes no Objective-C: that goes to clang."""

    def build_extensions(self):
        self._compile_side_by_side(self.compiler)
        if sys.platform.startswith("linux"):
            self._divert_objc(self.compiler)
        super().build_extensions()

    @staticmethod
    def _compile_side_by_side(compiler):
        plain = compiler.compile

        def compile_all(
            sources, output_dir=None, macros=None, include_dirs=None, debug=False, extra_postargs=None, depends=None
        ):
            if any(source.endswith(".m") for source in sources):  # one compiler after the other, see below
                return plain(sources, output_dir, macros, include_dirs, debug, None, extra_postargs, depends)
            macros, objects, postargs, options, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs
            )
            arguments = compiler._get_cc_args(options, debug, None)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(compiler._compile, obj, *build[obj], arguments, postargs, options) for obj in build]
            for job in jobs:
                job.result()
            return objects

        compiler.compile = compile_all

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
