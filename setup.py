"""Packages and their data; everything else stands in pyproject.toml."""

import os

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class WithTestedSet(build_py):
    """`dopsd doctor` compares what is installed with the tested set, from a wheel too."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file("constraints.txt", os.path.join(self.build_lib, "dopsd"))


# Users look for configs/ at the top level; a wheel carries it inside the package.
setup(
    cmdclass={"build_py": WithTestedSet},
    packages=[*find_packages(include=["dopsd*"]), "dopsd.configs"],
    package_dir={"dopsd.configs": "configs"},
)
