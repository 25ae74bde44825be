"""The ament_python side of the package: what ROS's tools read, and what setuptools before 61 (Humble) has to find here.

Name, texts and links for people stand in pyproject.toml. Requirements stand in requirements/, each file an extra.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "semla_ros"
ROOT = Path(__file__).resolve().parent


def share_files(*folders: str) -> list[tuple[str, list[str]]]:
    """Every file below the folders, as `data_files` entries under share/semla_ros."""
    entries = []
    for folder in folders:
        for directory in sorted({path.parent for path in (ROOT / folder).rglob("*") if path.is_file()}):
            files = [str(path.relative_to(ROOT)) for path in sorted(directory.iterdir()) if path.is_file()]
            entries.append((f"share/{NAME}/{directory.relative_to(ROOT)}", files))
    return entries


def requirements(path: Path) -> list[str]:
    """The requirements in a file, without comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def version() -> str:
    """That of package.xml, where ROS's release tools count it up."""
    found = re.search(r"<version>(.+)</version>", (ROOT / "package.xml").read_text(encoding="utf-8"))
    assert found, "package.xml has no <version>"
    return found[1]


files = {path.stem: requirements(path) for path in sorted((ROOT / "requirements").glob("*.txt"))}
core = files.pop("robot")
extras = {name: lines for name, lines in files.items() if "-" not in name}

setup(
    name=NAME,
    version=version(),
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={
        NAME: ["py.typed", "**/*.html", "**/*.j2", "**/*.json", "**/*.yaml", "**/*.css", "**/*.js", "**/*.txt"]
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *share_files("launch", "config", "adapters", "models"),
    ],
    python_requires=">=3.10",
    install_requires=core,
    extras_require=extras | {"test": ["pytest"]},  # "test": by which colcon test knows how to run the tests
    zip_safe=False,
    author="semla_ros maintainers",
    maintainer="semla_ros maintainers",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "perception = semla_ros.executables:perception",
            "scene_camera = semla_ros.executables:scene_camera",
            "semla = semla_ros.executables:semla",
        ],
    },
)
