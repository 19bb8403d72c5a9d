"""Where the packages lie; everything else about the distribution is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # The CUDA sources have a directory of their own in the checkout and are installed as a subpackage.
    packages=[*find_packages(include=["convbackprop", "convbackprop.*"]), "convbackprop.cuda_src"],
    package_dir={"convbackprop.cuda_src": "cuda_src"},
    package_data={
        "convbackprop": [
            "py.typed",
            "cpu_runtime/**/*.h",
            "cpu_runtime/**/*.cpp",
            "templates/*.cu",
            "lab/exercises/*.cu",
            "bench/*.cu",
            "lab/rubric.toml",
            "tune/measured/*.json",
        ],
        "convbackprop.cuda_src": ["**/*.cu", "**/*.cuh"],
    },
)
