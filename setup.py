"""Puts weights that Git has in results/weights into the built package, as nag/weights; all else is
in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGED = ("sit.safetensors", "estimator-linear.safetensors")


class BuildWithWeights(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "nag", "weights")
            self.mkpath(str(folder))
            for name in PACKAGED:
                self.copy_file(str(Path("results", "weights", name)), str(folder / name))


setup(cmdclass={"build_py": BuildWithWeights})
