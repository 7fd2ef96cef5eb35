"""Compiles the torch ops (`_C`, and `_C_cuda` where CUDA is at hand) and the host module `_host`.

AMCT_CUDA=1 demands the CUDA kernels, AMCT_CUDA=0 leaves them out; unset, they are built when
torch is a CUDA build and nvcc is found. Whether a GPU is present plays no part.
"""

import os

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # one binary for torch 2.10 and later
# No contraction, no fast-math: the bits of every operation are part of the contract.
CXX = [
    "-O3",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-unknown-pragmas",
    f"-ffile-prefix-map={os.path.dirname(os.path.abspath(__file__))}{os.sep}=",
]
NVCC = ["-O3", "--fmad=false", "-DUSE_CUDA", "-Xcompiler=-ffp-contract=off"]
HEADERS = [
    os.path.join(folder, name)
    for folder, _, names in os.walk("csrc")
    for name in sorted(names)
    if name.endswith((".h", ".inl"))
]


def wants_cuda() -> bool:
    choice = os.environ.get("AMCT_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"AMCT_CUDA must be 0, 1 or unset, got {choice!r}")
    if choice == "1" and not CUDA_HOME:
        raise SystemExit("AMCT_CUDA=1 needs nvcc: set CUDA_HOME to the CUDA toolkit's folder")
    return choice == "1" or (choice == "" and bool(torch.version.cuda) and bool(CUDA_HOME))


extensions = [
    CppExtension(
        "amct_pytorch._C",
        ["csrc/library.cpp", "csrc/ops_cpu.cpp"],
        depends=HEADERS,
        py_limited_api=True,
        extra_compile_args={"cxx": [*CXX, STABLE_ABI]},
        extra_link_args=["-s"],
    ),
    Extension(  # torch-free: links nothing of it
        "amct_pytorch._host",
        ["csrc/host/host.cpp"],
        include_dirs=[pybind11.get_include()],
        depends=HEADERS,
        language="c++",
        extra_compile_args={"cxx": [*CXX, STABLE_ABI]},  # for the floor that build_info tells
        extra_link_args=["-s"],
    ),
]
if wants_cuda():
    # torch would ask the GPU of this machine, and fail where there is none.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    extensions.append(
        CUDAExtension(
            "amct_pytorch._C_cuda",
            ["csrc/library_cuda.cpp", "csrc/ops_cuda.cu"],
            depends=HEADERS,
            py_limited_api=True,
            extra_compile_args={
                "cxx": [*CXX, "-DUSE_CUDA", STABLE_ABI],
                "nvcc": [*NVCC, STABLE_ABI],
            },
            extra_link_args=["-s"],
        )
    )

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension},
)
