"""Packages and their data; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

# Users look for configs/ at the top level; a wheel carries it inside the package.
setup(
    packages=[*find_packages(include=["dopsd*"]), "dopsd.configs"],
    package_dir={"dopsd.configs": "configs"},
)
