"""Package metadata; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "megatron_kis" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

# Folders of the checkout that are installed inside the one package. The links of their names in megatron_kis are for
# whatever reads the sources in place: editors, mypy, a checkout on PYTHONPATH.
FOLDERS = ("analysis", "data_tools", "run_scripts")
LINKED = tuple(f"megatron_kis.{folder}" for folder in FOLDERS)
OWN = [name for name in find_packages(include=["megatron_kis", "megatron_kis.*"]) if not name.startswith(LINKED)]
MAPPED = [f"megatron_kis.{name}" for folder in FOLDERS for name in find_packages(include=[folder, f"{folder}.*"])]

# What encodes fast is always there: 70 MB with all they need, next to PyTorch's 750. gigatoken has wheels for these
# machines (Linux, macOS, Windows); on others the tokenizer's own library encodes.
GIGATOKEN = "gigatoken>=0.10; platform_machine in 'x86_64 AMD64 aarch64 arm64'"
ENCODE = [GIGATOKEN, "tokenizers>=0.20.1", "zstandard>=0.22"]
CORPUS = [*ENCODE, "tiktoken>=0.8", "pyarrow>=15", "nltk>=3.9.1"]
COMPARE = ["lm-pub-quiz==0.3.3", "lm-eval>=0.4.9"]
EXPORT = ["transformers>=4.44", "safetensors>=0.4"]
DOCS = ["mkdocs-material>=9.5"]
REPORT = ["jinja2>=3.1", "matplotlib>=3.8"]

setup(
    name="megatron-kis",
    version=VERSION,
    description="Knowledge-infusion scaling studies on Megatron-Core: exact exposures, probes, collapse points",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=OWN + MAPPED,
    package_dir={f"megatron_kis.{folder}": folder for folder in FOLDERS},
    package_data={
        "megatron_kis.data_tools": ["resources/*"],
        "megatron_kis.analysis.report": ["*.html", "*.css", "*.js"],
        "megatron_kis.run_scripts": [
            "slurm/*.j2",
            "studies/*.yaml",
            "studies/templates/*.yaml",
            "runs/*.yaml",
            "examples/*.py",
        ],
    },
    install_requires=[
        "torch>=2.6",
        "megatron-core>=0.16.1,<0.20,!=0.17.*,!=0.18.*",  # tested: 0.16.1 on Python 3.11, 0.19.2 on 3.12 (README)
        "numpy>=1.26",
        "scipy>=1.12",
        "pandas>=2.1",
        "pydantic>=2.9",
        "PyYAML>=6.0",
        "rich>=13.0",
        "sentencepiece>=0.2",
        "ahocorasick_rs>=1.0",
        "regex>=2024.4.16",
        "orjson>=3.10",
        "ijson>=3.3",
        *ENCODE,
        *REPORT,
    ],
    extras_require={
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=1.11",
            "pandas-stubs>=2.2",
            "scipy-stubs>=1.14",
            "types-PyYAML>=6.0",
            "types-regex>=2024.4",
            "statsmodels>=0.14",
            *CORPUS,
            *EXPORT,
            *DOCS,
            *COMPARE,
        ],
        "corpus": CORPUS,
        "compare": COMPARE,
        "report": REPORT,
        "docs": DOCS,
        "export": EXPORT,
        "trackers": ["tensorboard>=2.17", "wandb>=0.18"],
        # as megatron_kis/model/support.py has it, for the megatron-core that each Python gets
        "gpu": [
            "transformer-engine[core_cu13,pytorch]>=2.9,<2.12; python_version < '3.12'",
            "transformer-engine[core_cu13,pytorch]>=2.9,<2.21; python_version >= '3.12'",
        ],
    },
    entry_points={"console_scripts": ["kis = megatron_kis.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
