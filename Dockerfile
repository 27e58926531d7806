# One image for a cluster, in two sizes: `cpu` for heads and small machines, `gpu` for those who train.
#
#   docker build --target cpu -t ift:0.1.0-cpu .
#   docker build --target gpu -t ift:0.1.0-gpu .
#   docker run --rm -it --shm-size=4g -v "$PWD:/work" ift:0.1.0-cpu run jobs/quickstart.yaml
#   docker run --rm -it --shm-size=16g --gpus all -v "$PWD:/work" ift:0.1.0-gpu run jobs/quickstart.yaml
#
# --shm-size: Ray's object store lives in /dev/shm, of which Docker gives 64 MB; NCCL wants room there too.
#
# Both stand on the same Debian with the same Python to the last digit: Ray refuses nodes that differ. Of the CUDA
# image only the compiler is taken, for DeepSpeed's kernels: torch's wheel from PyPI carries the libraries (13.0 for
# torch 2.13). Tags may be moved, digests may not; `docker buildx imagetools inspect NAME:TAG` says what a tag names
# today, and `--build-arg BASE=…` or `--build-arg CUDA=…` takes another. amd64 only.
ARG BASE=debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171
ARG CUDA=nvidia/cuda:13.0.1-devel-ubuntu24.04@sha256:7d2f6a8c2071d911524f95061a0db363e24d27aa51ec831fcccf9e76eb72bc92

# hadolint ignore=DL3006
FROM ${CUDA} AS cuda

# What every stage stands on. The digest above holds still, so Debian's fixes since then come from `upgrade`; the
# versions are those of Debian 12. wget is what KubeRay's probes call, ssh and rsync what Ray's launcher calls from a
# head, libaio what DeepSpeed's offload to disks links.
# hadolint ignore=DL3006
FROM ${BASE} AS base
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get upgrade -y \
 && apt-get install -y --no-install-recommends ca-certificates libaio1 libgomp1 openssh-client python3 python3-venv rsync wget \
 && rm -rf /var/lib/apt/lists/*
# Debian's /etc/profile sets PATH anew, and Ray's launcher runs all that it runs in a login shell.
RUN useradd --create-home --uid 1000 --shell /bin/bash ift \
 && install -d -o ift -g ift /cache /scratch /work \
 && echo 'PATH=/opt/venv/bin:$PATH' > /etc/profile.d/ift.sh
# All that is written goes to these three folders, /tmp and /dev/shm: the rest may be mounted read-only.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    IFT_CACHE=/cache/ift \
    IFT_HOME=/cache \
    MPLCONFIGDIR=/cache/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TORCH_EXTENSIONS_DIR=/cache/torch-extensions \
    TRITON_CACHE_DIR=/cache/triton \
    RAY_USAGE_STATS_ENABLED=0

# What builds, and stays behind. The dependencies come before the source, so that a change of the source does not
# install them again.
FROM base AS tools
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential libaio-dev python3-dev \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /opt/ift
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ift/__init__.py ift/__init__.py
COPY cluster/image/build-ops cluster/image/build-ops

# An empty TORCH_INDEX: where pip looks anyway.
FROM tools AS cpu-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --no-deps -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
RUN pip install --no-cache-dir -c constraints.txt '.[server]' setuptools wheel==0.48.0
RUN DS_ACCELERATOR=cpu cluster/image/build-ops
COPY ift ift
RUN pip install --no-cache-dir --no-deps --force-reinstall .

# Compute capabilities: A100, A10 and its like, L4 and L40S, H100 and H200, B200, RTX 50.
FROM tools AS gpu-packages
COPY --from=cuda /usr/local/cuda-13.0 /usr/local/cuda-13.0
RUN pip install --no-cache-dir -c constraints.txt '.[server]' setuptools wheel==0.48.0 liger-kernel==0.8.5 bitsandbytes==0.50.2
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0"
RUN CUDA_HOME=/usr/local/cuda-13.0 DS_ACCELERATOR=cuda TORCH_CUDA_ARCH_LIST="$TORCH_CUDA_ARCH_LIST" \
    cluster/image/build-ops
COPY ift ift
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM base AS final
# Docker finds it in /etc/passwd; Ray's launcher, which puts the token there, looks only here.
ENV HOME=/home/ift
COPY cluster/mlflow/serve /opt/ift/cluster/mlflow/serve
COPY cluster/image/leave /opt/ift/cluster/image/leave
COPY jobs /opt/ift/jobs
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=2m --start-period=2m --retries=2 CMD ["ift", "doctor", "--local"]
ENTRYPOINT ["ift"]
CMD ["--help"]

# Triton compiles a small C file for each kernel that it launches: a GPU image keeps a compiler.
FROM final AS gpu
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=gpu-packages /opt/venv /opt/venv
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
RUN ift --version

# Last, and so what `docker build` makes without --target.
FROM final AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
USER 1000:1000
RUN ift --version
