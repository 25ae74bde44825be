"""ament_python package; also installable with pip."""

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


setup(
    name=NAME,
    version="0.1.0",
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
    # Versions tested together stand in requirements.txt; ROS packages come from the distribution or its wheels.
    install_requires=["setuptools"],
    extras_require={"openvino": ["openvino"], "test": ["pytest"]},  # by which colcon test knows how to run the tests
    zip_safe=False,
    author="semla_ros maintainers",
    maintainer="semla_ros maintainers",
    description="Open-vocabulary segmentation that adapts to the scene by fusing LoRA adapters, as a ROS 2 node.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "perception = semla_ros.nodes.perception_node:main",
            "scene_camera = semla_ros.lab.demo.scene_camera_node:main",
            "semla = semla_ros.cli:main",
        ],
    },
)
