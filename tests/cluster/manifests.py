"""The manifests of cluster/, read as their tools read them, and held against those tools' schemas.

In:  a file of cluster/compose, cluster/kuberay or cluster/aws; or what a test made of one.
Out: its documents, their containers, and what is wrong with them, in words.

    documents("kuberay/ray.yaml")[0]["kind"] == "RayCluster"
    wrong_with_kubernetes({"apiVersion": "v1", "kind": "Service", "speck": {}})   # names `speck`
"""

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = Path(__file__).with_name("schemas")
KUBERNETES = "1.33"  # the oldest that the clouds still serve


def documents(name: str) -> list[Any]:
    """The YAML documents of a file below cluster/."""
    return [each for each in yaml.safe_load_all((CLUSTER / name).read_text()) if each is not None]


def kuberay() -> list[Any]:
    """Every Kubernetes object of cluster/kuberay."""
    files = sorted((CLUSTER / "kuberay").glob("*.yaml"))
    return [
        each
        for file in files
        if file.name != "kustomization.yaml"
        for each in documents(f"kuberay/{file.name}")
    ]


def _closed(schema: Any) -> Any:
    """The schema with unknown keys refused, as `kubectl --validate=strict` refuses them."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


@cache
def _kuberay_schemas() -> dict[str, Any]:
    return {
        kind: _closed(schema)
        for kind, schema in yaml.safe_load((SCHEMAS / "kuberay.yaml").read_text()).items()
    }


def pod_templates(document: Any) -> Iterator[tuple[str, Any]]:
    """Each pod template of an object with a name for it: of Ray's groups, a job's submitter, a deployment."""
    spec, name = document.get("spec") or {}, f"{document['kind']} {document['metadata']['name']}"
    if document["kind"] == "RayCluster":
        yield f"{name}: head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name}: {group['groupName']}", group["template"]
    elif document["kind"] == "RayJob":
        yield f"{name}: submitter", spec["submitterPodTemplate"]
    elif document["kind"] in ("Deployment", "StatefulSet"):
        yield name, spec["template"]


def wrong_with_kubernetes(document: Any) -> list[str]:
    """What Kubernetes' schema (unknown keys refused), or KubeRay's, has against an object; nothing if it is right."""
    import jsonschema
    import kubernetes_validate

    document = copy.deepcopy(document)
    wrong: list[str] = []
    if document["apiVersion"] == "ray.io/v1":
        known = _kuberay_schemas().get(document["kind"])
        if known is None or set(document) != {"apiVersion", "kind", "metadata", "spec"}:
            return [f"{document['kind']} with {sorted(document)} is none of KubeRay's"]
        wrong += [
            f"{error.json_path}: {error.message}"
            for error in jsonschema.Draft202012Validator(known).iter_errors(document["spec"])
        ]
        checked = [  # KubeRay embeds Kubernetes' own
            {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": document["metadata"],
                "template": template,
            }
            for _, template in pod_templates(document)
        ]
    else:
        checked = [document]
    for each in checked:
        try:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(error.message)
        except kubernetes_validate.SchemaNotFoundError as error:
            wrong.append(error.message)
    return wrong


def wrong_with_compose(document: Any) -> list[str]:
    """What the Compose specification's schema has against a compose file."""
    import check_jsonschema
    import jsonschema

    found = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.Draft202012Validator(json.loads(found.read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def wrong_with_launcher(document: Any) -> list[str]:
    """What Ray's cluster launcher has against its file, with the defaults filled in as `ray up` fills them in."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(document)))
    except (jsonschema.ValidationError, ValueError, AssertionError) as error:
        return [getattr(error, "message", str(error))]
    return []


def wrong_with_policy(document: Any) -> list[str]:
    """What IAM's grammar, as moto knows it, has against a policy."""
    import boto3
    from botocore.exceptions import ClientError
    from moto import mock_aws

    with mock_aws():
        iam = boto3.client("iam", "eu-central-1", aws_access_key_id="test", aws_secret_access_key="test")
        try:
            iam.create_policy(PolicyName="policy", PolicyDocument=json.dumps(document))
        except ClientError as error:
            return [error.response["Error"]["Message"]]
    return []


def compose_services(*names: str) -> dict[str, Any]:
    """The services of compose files, a later one's keys over an earlier one's."""
    services: dict[str, Any] = {}
    for name in names:
        for service, settings in documents(f"compose/{name}")[0]["services"].items():
            services[service] = {**services.get(service, {}), **settings}
    return services


def quantity(text: str | int) -> float:
    """Bytes of a size as Kubernetes, Docker and compose write it: 64Gi, 16gb, 64g, 40000000000."""
    text = str(text).lower().removesuffix("b").removesuffix("i")
    powers = {"k": 10, "m": 20, "g": 30, "t": 40}
    return float(text[:-1]) * 2 ** powers[text[-1]] if text[-1] in powers else float(text)
