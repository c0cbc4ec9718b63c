"""Installs dera_jax: lower bounds here, the exact versions `make` installs in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Not imported: what the package itself imports may not be installed yet.
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dera_jax/__init__.py").read_text())[1]

REQUIRES = [
    "absl-py>=2.1",
    "etils[epath]>=1.9",
    "flax>=0.12",
    "gguf>=0.17",
    "gin-config>=0.5",
    "huggingface_hub>=2.0",
    "jax>=0.10",
    "jinja2>=3.1.6",  # older versions have known escapes from the sandbox of chat templates
    "matplotlib>=3.8",
    "ml_dtypes>=0.5",
    "msgpack>=1.0",
    "nltk>=3.9",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.20",
    "pandas>=2.2",
    "protobuf>=5.26",
    "rouge-score>=0.1.2",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6",  # event files without TensorFlow
    "tensorstore>=0.1.70",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]

EXTRAS = {
    # The tasks of data, see dera_jax/data/seqio_extra.py.
    "seqio": [
        "seqio>=0.0.20",
        # Not tensorflow-cpu: seqio needs tensorflow-text, which requires `tensorflow` by that name,
        # and both would write the same files.
        "tensorflow>=2.19",
        "tensorflow-datasets>=4.9.7",
    ],
    "parquet": ["pyarrow>=18"],  # own files in this format, see dera_jax/data/tables.py
    # Most tests read tasks: .[test,seqio]
    "test": [
        "hypothesis>=6.100",
        "ipykernel>=6.29",
        "nbclient>=0.10",
        "peft>=0.17",
        "pyarrow>=18",
        "pytest>=8.0",
        "pytest-xdist>=3.6",
        "regex>=2024.11",
        "ruff>=0.12",
        "selenium>=4.20",
        "torch>=2.6",
        "transformers>=4.50",
    ],
    "bench": ["torch>=2.6", "transformers>=4.50"],
    # Brings versions of its own; docs/t5x.md has a way that keeps those of constraints.txt.
    "t5x": ["t5x @ git+https://github.com/google-research/t5x"],
    "gpu": ["jax[cuda12]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
}

setup(
    name="dera_jax",
    version=VERSION,
    description="Decoding-time alignment of language models in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    # One package, since the names `tasks` and `gin_configs` in site-packages could be somebody else's:
    # dera_jax/tasks and dera_jax/gin_configs are links to the two folders beside it.
    packages=find_packages(include=["dera_jax", "dera_jax.*"]),
    package_data={"dera_jax": ["assets/**", "**/*.html", "gin_configs/**/*.gin"]},
    entry_points={"console_scripts": ["dera-jax = dera_jax.command:main"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
