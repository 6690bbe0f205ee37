"""The manifests: Kubernetes' own schemas, and rules that a schema cannot express."""

from typing import Any

import kubernetes_validate
import pytest
import yaml

from bei import api
from bei.settings import Settings
from tests.support.configs import tiny_config
from tests.support.containers import QUEUE_SECONDS, environment, given
from tests.support.servers import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


POD = manifest("deployment")["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]


@pytest.mark.parametrize("name", ["deployment", "service", "poddisruptionbudget", "hpa"])
def test_it_is_what_kubernetes_takes(name):
    kubernetes_validate.validate(manifest(name), "1.37", strict=True)


def test_the_schemas_bite():
    wrong = manifest("deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_kustomize_finds_its_files():
    kustomization = manifest("kustomization")
    (generated,) = kustomization["configMapGenerator"]
    assert all((FOLDER / name).exists() for name in (*kustomization["resources"], *generated["files"]))
    mounted = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    assert mounted["config"]["configMap"]["name"] == generated["name"]


def test_everything_selects_the_pods():
    labels = POD["metadata"]["labels"].items()
    assert manifest("deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    assert manifest("service")["spec"]["selector"].items() <= labels
    assert manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"].items() <= labels
    target = manifest("hpa")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", manifest("deployment")["metadata"]["name"])
    monitor, service = manifest("servicemonitor"), manifest("service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_ports_and_paths_are_ours():
    paths = {route.path for route in api.ROUTES if route.method == "GET" and route.public}
    (port,) = CONTAINER["ports"]
    probes = [CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    assert [probe["path"] for probe in probes] == ["/health/ready", "/health/ready", "/health/live"]
    (endpoint,) = manifest("servicemonitor")["spec"]["endpoints"]
    assert {probe["path"] for probe in probes} | {endpoint["path"]} <= paths
    (service,) = manifest("service")["spec"]["ports"]
    assert {service["targetPort"], *(probe["port"] for probe in probes)} == {port["name"]}
    assert endpoint["port"] == service["name"]
    assert str(port["containerPort"]) == environment("Dockerfile")["BEI_PORT"]


def test_what_it_sets_are_settings():
    variables = {variable["name"]: variable.get("value", "secret") for variable in CONTAINER["env"]}
    ours = {name: value for name, value in variables.items() if name.startswith("BEI_")}
    settings = Settings.load(manifest("config"), environ={**ours, "HF_TOKEN": variables["HF_TOKEN"]})
    assert settings.credential.get_secret_value() == "secret"


def test_a_service_of_our_name_sets_none_of_our_settings():
    """Kubernetes gives pods BEI_PORT=tcp://10.0.0.1:80 where a service is named bei."""
    assert manifest("service")["metadata"]["name"] == "bei"
    assert POD["spec"]["enableServiceLinks"] is False


def test_it_has_time_to_drain():
    drain = Settings.load(tiny_config(), environ={v["name"]: v["value"] for v in CONTAINER["env"][:2]}).drain_seconds
    *_, sleep = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["spec"]["terminationGracePeriodSeconds"] > float(sleep) + drain + QUEUE_SECONDS


def test_it_has_no_privileges_and_writes_to_its_volumes_alone():
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"]
    assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == given("Dockerfile", "USER")[-1]
    assert container["readOnlyRootFilesystem"]
    assert not container["allowPrivilegeEscalation"]
    assert container["capabilities"] == {"drop": ["ALL"]}
    writable = {mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {environment("Dockerfile")["HOME"], "/tmp"}
