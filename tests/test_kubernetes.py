"""launch/kubernetes.yaml fits the published schemas, and runs our command on all nodes with one shared folder."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_dist.cli.arguments import TrainCommand
from lora_dist.cli.parsing import parse_with_preset

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = json.loads((ROOT / "tests" / "kubeflow_schemas.json").read_text(encoding="utf-8"))
TYPES: dict[str, type] = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def violations(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Where a value breaks a schema; as the API server, with unknown fields refused."""
    if options := schema.get("anyOf"):
        found = [] if any(not violations(value, option) for option in options) else [f"{where}: no option fits"]
    elif not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return [f"{where}: not of type {schema['type']}"]
    else:
        found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: not one of {schema['enum']}")
    if isinstance(value, str) and not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        found.append(f"{where}: too short or too long")
    if "pattern" in schema and not re.search(schema["pattern"], str(value)):
        found.append(f"{where}: {value} does not match")
    if isinstance(value, list):
        found += [f"{where}: too many items"] if len(value) > schema.get("maxItems", len(value)) else []
        found += [text for i, item in enumerate(value) for text in violations(item, schema["items"], f"{where}[{i}]")]
    if isinstance(value, dict):
        found += [f"{where}.{name}: missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            part = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            found += [f"{where}.{name}: unknown"] if part is None else violations(item, part, f"{where}.{name}")
    return found


@pytest.fixture
def objects() -> dict[str, Any]:
    """The file's objects by kind."""
    text = (ROOT / "launch" / "kubernetes.yaml").read_text(encoding="utf-8")
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


@pytest.mark.parametrize("kind", ["TrainJob", "TrainingRuntime"])
def test_an_object_fits_its_published_schema(objects: dict[str, Any], kind: str) -> None:
    assert objects[kind]["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert violations(objects[kind], SCHEMAS[kind]) == []


def test_the_check_finds_what_the_api_server_would_refuse(objects: dict[str, Any]) -> None:
    job = objects["TrainJob"]
    job["spec"]["trainer"] |= {"numNodes": "two", "nodes": 2}
    job["spec"]["trainer"]["resourcesPerNode"]["limits"]["memory"] = "much"
    del job["spec"]["runtimeRef"]["name"]
    assert violations(job, SCHEMAS["TrainJob"]) == [
        ".spec.runtimeRef.name: missing",
        ".spec.trainer.numNodes: not of type integer",
        ".spec.trainer.resourcesPerNode.limits.memory: much does not match",
        ".spec.trainer.nodes: unknown",
    ]


def test_every_node_runs_the_same_command_with_the_run_directory_on_the_shared_claim(objects: dict[str, Any]) -> None:
    trainer, runtime = objects["TrainJob"]["spec"]["trainer"], objects["TrainingRuntime"]
    assert objects["TrainJob"]["spec"]["runtimeRef"] == {
        "kind": runtime["kind"],
        "name": runtime["metadata"]["name"],
    }
    assert trainer["numNodes"] > 1
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert trainer["command"] == ["torchrun", "-m", "lora_dist"]
    assert trainer["args"][0] == "run"
    command = parse_with_preset(TrainCommand, "run", "", trainer["args"][1:])
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # Trainer finds the container that it fills in by these names.
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert job["name"] == container["name"] == "node"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v}
    claim = objects["PersistentVolumeClaim"]
    assert claims == {"shared": claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert command.out.is_relative_to(mounts["shared"])
    assert command.resume
