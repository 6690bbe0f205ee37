"""The chart as helm renders it: the manifests of deploy/kubernetes, and what its values change."""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bei import __version__
from bei.settings import Settings
from tests.support.deploy_tools import run
from tests.support.servers import ROOT

CHART = ROOT / "deploy" / "helm"
PLAIN = ROOT / "deploy" / "kubernetes"
OWN = ("Deployment", "Service", "PodDisruptionBudget", "ConfigMap", "HorizontalPodAutoscaler")


def objects(text: str) -> dict[str, dict[str, Any]]:
    """By their kind; each occurs once."""
    found = [made for made in yaml.safe_load_all(text) if made]
    assert len({made["kind"] for made in found}) == len(found)
    return {made["kind"]: made for made in found}


def rendered(*values: str) -> dict[str, dict[str, Any]]:
    done = run("helm", "template", "bei", str(CHART), *(f"--set={value}" for value in values))
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def plain(name: str) -> dict[str, Any]:
    return yaml.safe_load((PLAIN / f"{name}.yaml").read_text())


def pod(made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return made["Deployment"]["spec"]["template"]


def test_without_values_it_is_what_kustomize_makes():
    done = run("kubectl", "kustomize", str(PLAIN))
    assert done.returncode == 0, done.stderr
    theirs, ours = objects(done.stdout), rendered()
    assert ours.keys() == theirs.keys()
    del pod(ours)["metadata"]["annotations"]  # kustomize's ConfigMap has a hash in its name in its place
    hashed = theirs["ConfigMap"]["metadata"].pop("name")
    pod(theirs)["spec"]["volumes"][0]["configMap"]["name"] = ours["ConfigMap"]["metadata"].pop("name")
    assert hashed.startswith("bei-config-")
    for made in (ours, theirs):
        made["ConfigMap"]["data"]["config.yaml"] = yaml.safe_load(made["ConfigMap"]["data"]["config.yaml"])
    assert ours == theirs


def test_helm_finds_nothing_to_say():
    done = run("helm", "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("values", [(), ("hpa.enabled=true", "cache.claim=c", "env.BEI_THREADS=4", "nodeSelector.a=b")])
def test_it_is_what_kubernetes_takes(values):
    made = rendered(*values)
    assert made.keys() == set(OWN if values else OWN[:-1])
    for one in made.values():
        kubernetes_validate.validate(one, "1.37", strict=True)


@pytest.mark.parametrize(
    ("value", "kind", "file"),
    [
        ("hpa.enabled=true", "HorizontalPodAutoscaler", "hpa"),
        ("keda.enabled=true", "ScaledObject", "keda"),
        ("podMonitor.enabled=true", "PodMonitor", "podmonitor"),
    ],
)
def test_an_option_is_the_manifest_beside_it(value, kind, file):
    made = rendered(value)
    assert made.keys() == {*OWN[:-1], kind}
    assert made[kind] == plain(file)
    assert ("replicas" in made["Deployment"]["spec"]) == (file == "podmonitor")


def test_the_alert_rules_are_those_of_prometheus():
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    assert rendered("alerts.enabled=true")["PrometheusRule"]["spec"] == rules


def test_two_autoscalers_are_refused():
    done = run("helm", "template", "bei", str(CHART), "--set=hpa.enabled=true,keda.enabled=true")
    assert done.returncode != 0
    assert "choose one autoscaler" in done.stderr


def test_a_value_reaches_the_pod():
    first, second = (rendered(f"config.trt_llm.build.max_num_tokens={tokens}") for tokens in (8192, 4096))
    assert pod(first)["metadata"]["annotations"] != pod(second)["metadata"]["annotations"]
    config = yaml.safe_load(second["ConfigMap"]["data"]["config.yaml"])
    assert Settings.load(config, environ={}).max_num_tokens == 4096
    made = rendered("env.BEI_PRECISION=int8", "env.BEI_THREADS=4", "secret=s", "cache.claim=c", "image.tag=1")
    (container,) = pod(made)["spec"]["containers"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert (values["BEI_PRECISION"], values["BEI_THREADS"]) == ("int8", "4")
    secrets = [v["valueFrom"]["secretKeyRef"]["name"] for v in container["env"] if "valueFrom" in v]
    assert (secrets, container["image"]) == (["s", "s"], "bei:1")
    assert pod(made)["spec"]["volumes"][1]["persistentVolumeClaim"] == {"claimName": "c"}


def test_the_values_of_the_page_render(tmp_path):
    (values,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deploying.md").read_text(), re.DOTALL)
    (tmp_path / "values.yaml").write_text(values)
    done = run("helm", "template", "bei", str(CHART), "--values", str(tmp_path / "values.yaml"))
    assert done.returncode == 0, done.stderr
    made = objects(done.stdout)
    assert made.keys() == {*OWN[:-1], "ScaledObject", "PodMonitor", "PrometheusRule"}
    settings = Settings.load(yaml.safe_load(made["ConfigMap"]["data"]["config.yaml"]), environ={})
    assert settings.repo == "BAAI/bge-m3"


def test_its_version_is_the_package_s():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
