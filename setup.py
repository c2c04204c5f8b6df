"""Copies conf/ into the package pnfrec_dist when a wheel is built. pyproject.toml cannot express this."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib) / "pnfrec_dist" / "conf", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConf})
