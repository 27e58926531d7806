"""The image, as far as it can be built and run without a container engine: tests/cluster/replay_image.py does it.

`IFT_REPLAY_INTO` names a folder to keep between runs: a stage that is complete in it is not built again. The first time
takes 5 GB and, on two cores, half an hour.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.manifests import compose_services
from cluster.replay_image import Replay, Stage, mirror

pytestmark = pytest.mark.long
TOOLS = ("debootstrap", "unshare", "chroot", "ip")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replay, Stage]]:
    """The replayed `cpu` target; its torch comes from where this machine's pip looks."""
    if os.geteuid() != 0:
        pytest.skip("needs root rights")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    kept = os.environ.get("IFT_REPLAY_INTO")
    into = Path(kept) if kept else tmp_path_factory.mktemp("image")
    into.mkdir(parents=True, exist_ok=True)
    base = into / "debian" if (into / "debian").is_dir() else None
    replay = Replay(into, {"TORCH_INDEX": ""}, base=base, mirror=mirror())
    yield replay, replay.build("cpu")
    if not kept:
        shutil.rmtree(into)


@pytest.mark.timeout(5400)
def test_the_image_works_without_root_in_a_root_folder_that_cannot_be_written(
    image: tuple[Replay, Stage],
) -> None:
    replay, stage = image
    assert stage.user == "1000:1000"
    assert (replay.folder(stage) / "opt" / "venv" / "bin" / "ift").is_file()
    assert not (replay.folder(stage) / "usr" / "bin" / "gcc").exists()  # compilers stay behind

    def ran(command: str) -> bool:
        return replay.run(stage, command, sealed=True) == 0

    assert ran("test $(id -u) = 1000 && ift --version")
    for folder in ("/", "/opt/venv", "/opt/ift", "/etc", "/home/ift", "/usr/bin"):
        assert not ran(f"touch {folder}/written")
    for folder in ("/cache", "/scratch", "/work", "/tmp", "/dev/shm"):
        assert ran(f"touch {folder}/written")
    # as Ray's launcher runs all that it runs: /etc/profile sets PATH anew; and a home that the image itself names
    assert ran("bash --login -c 'command -v ray && command -v ift && command -v ssh && command -v rsync'")
    assert stage.environment["HOME"] == "/home/ift"
    assert ran("/opt/ift/cluster/mlflow/serve; test $? = 2")  # it is there, and wants its settings


@pytest.mark.timeout(1200)
def test_deepspeeds_kernels_are_in_the_image_and_compute(image: tuple[Replay, Stage]) -> None:
    replay, stage = image
    program = """
import torch
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder
assert installed_ops["cpu_adam"] and installed_ops["async_io"] and installed_ops["fused_adam"], installed_ops
ours, theirs = (torch.nn.Parameter(torch.ones(1000)) for _ in range(2))
torchs = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0)
for weight, adam in ((ours, DeepSpeedCPUAdam([ours], lr=0.1)), (theirs, torchs)):
    weight.grad = torch.linspace(-1, 1, 1000)
    adam.step()
assert torch.allclose(ours, theirs, atol=1e-6), (ours - theirs).abs().max()
AsyncIOBuilder().load()
"""
    assert (
        replay.run(
            stage, 'python3 -c "$PROGRAM"', env={"PROGRAM": program, "DS_ACCELERATOR": "cpu"}, sealed=True
        )
        == 0
    )


@pytest.mark.timeout(1200)
def test_composes_head_and_worker_start_in_it_and_want_the_token(image: tuple[Replay, Stage]) -> None:
    """The commands of compose.yaml, in one sealed process tree: a head, its health check, a worker, a stranger."""
    replay, stage = image
    head, worker = (compose_services("compose.yaml")[name] for name in ("head", "worker"))
    # a secret lies where compose mounts it; here it is a file in /tmp, as nothing is mounted
    start = [
        " ".join([*each["entrypoint"], *each["command"]]).replace("=head:6379", "=127.0.0.1:6379")
        for each in (head, worker)
    ]
    small = " --num-cpus=1 --object-store-memory=100000000"
    start = [each.replace("--object-store-memory=1500000000", small) for each in start]
    check = " ".join(head["healthcheck"]["test"][1:])
    script = f"""
set -eu
umask 077
printf %s 0123456789abcdef > /tmp/token
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/tmp/token
{start[0]} --node-ip-address=127.0.0.1 > /tmp/head.log 2>&1 &
for try in $(seq 120); do {check} > /dev/null 2>&1 && break; sleep 2; done
{check} || {{ cat /tmp/head.log; exit 1; }}
{start[1].replace("--temp-dir=/scratch/ray", "")} --node-ip-address=127.0.0.1 > /tmp/worker.log 2>&1 &
for try in $(seq 120); do grep -q "Ray runtime started" /tmp/worker.log && break; sleep 2; done
grep -q "Ray runtime started" /tmp/worker.log || {{ cat /tmp/worker.log; exit 1; }}
python3 - <<'ASK'
import urllib.error, urllib.request
def ask(token=None):
    request = urllib.request.Request("http://127.0.0.1:8265/api/jobs/")
    if token:
        request.add_header("Authorization", "Bearer " + token)
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code
assert ask() == 401, ask()
assert ask("wrong" * 8) == 403, ask("wrong" * 8)
assert ask("0123456789abcdef") == 200
ASK
if RAY_AUTH_TOKEN_PATH=/dev/null {check} > /dev/null 2>&1; then echo "a stranger got in"; exit 1; fi
"""
    assert replay.run(stage, 'bash -c "$SCRIPT"', env={"SCRIPT": script}, sealed=True) == 0
