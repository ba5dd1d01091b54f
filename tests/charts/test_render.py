"""What is rendered is what Kubernetes takes, and what every pod owes to the cluster it runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from happyneurons.executors.base import Submission
from happyneurons.executors.kubernetes.config import KubernetesAccess
from happyneurons.executors.kubernetes.manifest import job_manifest, load_template
from happyneurons.jobs.spec import Resources
from happyneurons.orchestrator.sites import load_sites

from .conftest import CHART, NAMES, NAMESPACE, VALUES, Object, helm, of_kind, pods, rendered, template

VERSIONS = ("1.30", "1.37")
HEALTH_PORT = yaml.safe_load((CHART / "values.yaml").read_text())["security"]["healthPort"]
# Objects of others' APIs that the chart makes. Their own schemas are not part of Kubernetes': what is compared here is
# their group and version, and that nothing but these fields is given.
CUSTOM = {
    "cert-manager.io/v1/Certificate": {
        "secretName", "duration", "renewBefore", "privateKey", "usages", "dnsNames", "issuerRef",
    },
    "monitoring.coreos.com/v1/ServiceMonitor": {"selector", "namespaceSelector", "endpoints"},
    "monitoring.coreos.com/v1/PrometheusRule": {"groups"},
    "gateway.networking.k8s.io/v1/GRPCRoute": {"parentRefs", "hostnames", "rules"},
    "gateway.networking.k8s.io/v1/HTTPRoute": {"parentRefs", "hostnames", "rules"},
}  # fmt: skip


@pytest.mark.parametrize("path", VALUES, ids=NAMES)
def test_lint(path: Path) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_object_is_valid(objects: tuple[Object, ...]) -> None:
    assert objects
    for o in objects:
        custom = CUSTOM.get(f"{o['apiVersion']}/{o['kind']}")
        if custom is not None:
            assert set(o["spec"]) <= custom, o["kind"]
            continue
        kubernetes_validate.validate(o, VERSIONS[-1], strict=True)


def test_the_oldest_kubernetes_takes_it_too() -> None:
    for o in rendered("everything"):
        if f"{o['apiVersion']}/{o['kind']}" not in CUSTOM:
            kubernetes_validate.validate(o, VERSIONS[0], strict=True)


def test_names_are_of_one_release_and_unlike(objects: tuple[Object, ...]) -> None:
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)
    for o in objects:
        if o["metadata"]["name"].endswith("-extra"):
            continue
        assert o["metadata"]["namespace"] == NAMESPACE
        labels = o["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "neurons"
        assert labels["app.kubernetes.io/part-of"] == "happyneurons"
        assert len(o["metadata"]["name"]) <= 63


def test_every_selector_finds_its_pods_and_no_others(objects: tuple[Object, ...]) -> None:
    made = [(name, pod["metadata"]["labels"]) for name, pod in pods(objects)]

    def found(wanted: dict[str, str]) -> list[str]:
        return [name for name, labels in made if wanted.items() <= labels.items()]

    for kind, path in (("Service", ()), ("PodDisruptionBudget", ("matchLabels",)), ("Deployment", ("matchLabels",))):
        for name, o in of_kind(objects, kind).items():
            selector = o["spec"]["selector"]
            for step in path:
                selector = selector[step]
            assert found(selector) == [name.removesuffix("-pods")], (kind, name)


def test_every_pod_is_confined(objects: tuple[Object, ...]) -> None:
    seen = 0
    for name, pod in pods(objects):
        spec = pod["spec"]
        seen += 1
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] >= 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(forbidden)
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            volumes = {v["name"]: v for v in spec["volumes"]}
            assert "sizeLimit" in volumes[mounts["/tmp"]]["emptyDir"], "the one place that can be written to"
            assert set(mounts.values()) <= set(volumes), name
            if name != "jobs":  # Jobs get theirs by what they ask for
                assert container["resources"].get("requests"), name
    assert seen >= 3


def test_only_an_orchestrator_that_makes_jobs_has_a_token_and_it_can_do_nothing_else() -> None:
    for name in NAMES:
        made = rendered(name)
        tokens = {what for what, pod in pods(made) if pod["spec"]["automountServiceAccountToken"]}
        roles = of_kind(made, "Role")
        assert not of_kind(made, "ClusterRole")
        expected = {"everything": {"em-orchestrator"}, "ha": {"neurons-happyneurons-orchestrator"}}.get(name, set())
        assert tokens == expected
        assert bool(roles) == bool(expected)
        for role in roles.values():
            for rule in role["rules"]:
                assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
                assert set(rule["resources"]) <= {"jobs", "pods", "pods/log"}
        for account in of_kind(made, "ServiceAccount").values():
            assert account["automountServiceAccountToken"] is False


def test_servers_are_probed_and_leave_in_order(objects: tuple[Object, ...]) -> None:
    asked = set()
    for name, o in of_kind(objects, "Deployment").items():
        pod = o["spec"]["template"]["spec"]
        container = pod["containers"][0]
        if "acquisition" in name:
            assert o["spec"]["strategy"]["type"] == "Recreate", "one watcher of a folder at a time"
            continue
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        assert len(set(ports.values())) == len(ports), name
        secured = any(a.startswith("--security=") for a in container["args"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "volumes" in name:
                assert container[probe]["tcpSocket"] == {"port": "http"}, (name, probe)
            else:
                assert container[probe]["grpc"] == {"port": ports["health" if secured else "grpc"]}, (name, probe)
                asked.add((name, secured))
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drains = [a for a in container["args"] if a.startswith("--drain-s=")]
        needs = pause + (float(drains[0].partition("=")[2]) if drains else 5) + 5  # gRPC's own grace
        assert pod["terminationGracePeriodSeconds"] > needs, name
        update = o["spec"]["strategy"]["rollingUpdate"]
        assert update["maxUnavailable"] < max(2, o["spec"]["replicas"]), "somebody always answers"
    files = [o["data"]["security.yaml"] for n, o in of_kind(objects, "ConfigMap").items() if n.endswith("-security")]
    assert asked, "every release has an orchestrator"
    assert {secured for _, secured in asked} == {bool(files)}
    for text in files:
        assert yaml.safe_load(text)["health"] == f"0.0.0.0:{HEALTH_PORT}"
    for name, o in of_kind(objects, "Service").items():
        assert "health" not in str(o["spec"]["ports"]), f"{name}: only for the kubelet"


def test_many_replicas_have_a_disruption_budget(objects: tuple[Object, ...]) -> None:
    budgets = of_kind(objects, "PodDisruptionBudget")
    for name, o in of_kind(objects, "Deployment").items():
        wanted = o["spec"]["replicas"] > 1 and name != "em-stage-mesh"  # switched off there
        assert (name in budgets) == wanted, name


def test_a_changed_configuration_replaces_the_pods_that_read_it() -> None:
    def annotations(*settings: str) -> dict[str, Any]:
        made = of_kind(rendered("minimal", *settings), "Deployment")
        return {n.rpartition("-")[2]: o["spec"]["template"]["metadata"]["annotations"] for n, o in made.items()}

    before = annotations()
    with_site = annotations('orchestrator.sites={"far":{"executor":"service","address":"far:50051"}}')
    assert with_site["orchestrator"] != before["orchestrator"]
    assert with_site["montage"] == before["montage"], "and no others: their jobs go on"
    with_store = annotations('store.uri="s3://lab/others"')
    assert with_store["montage"] != before["montage"]


def test_sites_and_job_template_are_what_our_own_code_reads(objects: tuple[Object, ...], tmp_path: Path) -> None:
    found = [o["data"] for name, o in of_kind(objects, "ConfigMap").items() if name.endswith("-sites")]
    (data,) = found
    path = tmp_path / "sites.yaml"
    path.write_text(data["sites.yaml"])
    sites = load_sites(path)
    container = next(pod["spec"]["containers"][0] for name, pod in pods(objects) if name.endswith("-orchestrator"))
    (default,) = [a.partition("=")[2] for a in container["args"] if a.startswith("--default-site=")]
    assert default in sites
    services = of_kind(objects, "Service")
    for site in sites.values():
        if site.executor == "service" and site.address and site.address.startswith("dns:///"):
            host, _, port = site.address.removeprefix("dns:///").partition(":")
            service = services[host.partition(".")[0]]
            assert service["spec"]["clusterIP"] == "None"
            assert service["spec"]["ports"][0]["port"] == int(port)
    if "job.yaml" not in data:
        return
    (site,) = [s for s in sites.values() if s.executor == "kubernetes"]
    assert isinstance(site.kubernetes, KubernetesAccess)
    (tmp_path / "job.yaml").write_text(data["job.yaml"])
    submission = Submission(
        f"s3://lab/neurons/jobs/{'a' * 40}", "segment", Resources(ranks=3, memory_gb=5, walltime_min=60)
    )
    job = job_manifest("hpn-1", "jobs", submission, site.kubernetes, load_template(tmp_path / "job.yaml"))
    for version in VERSIONS:
        kubernetes_validate.validate(job, version, strict=True)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].endswith("/segment:0.1.0-rc1" if "registry" in container["image"] else "/segment:0.1.0")
    assert container["command"][:4] == ["mpiexec", "-n", "4", "hpn-stage"]
    assert container["resources"]["requests"] == {"cpu": "3", "memory": "5000000000"}


def test_policies_let_nothing_in_but_what_is_named() -> None:
    made = rendered("everything")
    policies = of_kind(made, "NetworkPolicy")
    everyone = policies["em"]["spec"]
    assert everyone["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everyone, "nothing"
    assert "app.kubernetes.io/component" not in everyone["podSelector"]["matchLabels"], "all pods of the release"
    ports = {
        name: [p["port"] for rule in o["spec"].get("ingress", []) for p in rule["ports"]]
        for name, o in policies.items()
    }
    assert ports == {
        "em": [], "em-orchestrator": ["grpc", "metrics"], "em-stage-gpu": ["grpc", "metrics"],
        "em-stage-mesh": ["grpc", "metrics"], "em-volumes": ["http"],
    }  # fmt: skip
    who = policies["em-stage-gpu"]["spec"]["ingress"][0]["from"]
    assert {w["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for w in who} == {"orchestrator", "test"}


def test_security_is_mounted_and_used_by_servers_and_clients() -> None:
    made = rendered("everything")
    config = yaml.safe_load(of_kind(made, "ConfigMap")["em-security"]["data"]["security.yaml"])
    assert config["tls"] == {"cert": "tls/tls.crt", "key": "tls/tls.key", "client_ca": "tls/ca.crt"}
    for name, pod in pods(made):
        container = pod["spec"]["containers"][0]
        mounted = [v for v in pod["spec"]["volumes"] if v["name"] == "security"]
        assert bool(mounted) == (name not in ("jobs", "em-volumes")), "jobs compute: they need to know nothing of it"
        if "orchestrator" in name or "stage" in name:
            assert "--security=/etc/happyneurons/security.yaml" in container["args"]
        if "orchestrator" in name or "acquisition" in name or "test" in name:
            env = {e["name"]: e.get("value") for e in container["env"]}
            assert env["HPN_TLS_CA"] == "/etc/happyneurons/tls/ca.crt"
            assert env["HPN_TLS_CERT"] == "/etc/happyneurons/tls/tls.crt"


def test_the_charts_own_clients_have_their_token_as_a_file() -> None:
    made = of_kind(rendered("s3-tls"), "Deployment")
    pod = made["neurons-happyneurons-orchestrator"]["spec"]["template"]["spec"]
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    assert env["HPN_TOKEN_FILE"] == "/etc/happyneurons/own-token", "read again when it changes"
    (volume,) = [v for v in pod["volumes"] if v["name"] == "security"]
    paths = [i["path"] for source in volume["projected"]["sources"] for i in source.get("secret", {}).get("items", [])]
    assert paths == ["own-token", "tls/tls.crt", "tls/tls.key", "tls/ca.crt"]


def test_boards_and_rules_are_passed_on_as_they_lie() -> None:
    made = rendered("everything")
    boards = [o for name, o in of_kind(made, "ConfigMap").items() if "-board-" in name]
    assert {key for o in boards for key in o["data"]} == {p.name for p in CHART.glob("dashboards/*.json")}
    for board in boards:
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        for name, text in board["data"].items():
            assert yaml.safe_load(text) == yaml.safe_load((CHART / "dashboards" / name).read_text())
    rules = of_kind(made, "PrometheusRule")
    files = {p.stem: yaml.safe_load(p.read_text()) for p in CHART.glob("rules/*.yaml")}
    assert {name.removeprefix("em-"): o["spec"] for name, o in rules.items()} == files
    assert not of_kind(rendered("minimal"), "PrometheusRule")


def test_every_pod_that_counts_is_scraped_once() -> None:
    made = rendered("everything")
    (monitor,) = of_kind(made, "ServiceMonitor").values()
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (port,) = [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]]
    scraped = [
        name
        for name, service in of_kind(made, "Service").items()
        if wanted <= service["metadata"]["labels"].items() and port in [p["name"] for p in service["spec"]["ports"]]
    ]
    assert sorted(scraped) == ["em-orchestrator", "em-stage-gpu-pods", "em-stage-mesh-pods"]


def test_notes_say_how_to_reach_it() -> None:
    done = helm(
        "install", "neurons", str(CHART), "--namespace", NAMESPACE, "--dry-run=client", "--values",
        str(CHART / "ci/minimal-values.yaml"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "neurons-happyneurons-orchestrator.lab.svc:50050" in notes
    assert "Sites: montage (jobs that name none go to montage)" in notes
    assert "WARNING: no TLS and no tokens" in notes


def test_a_grace_too_short_for_draining_is_refused() -> None:
    stage = 'stages=[{"name":"montage","cores":4,"terminationGracePeriodSeconds":30}]'
    done = template("--values", str(CHART / "ci/minimal-values.yaml"), "--set-json", stage)
    assert "montage: terminationGracePeriodSeconds 30 would kill what may drain for 45 s" in done.stderr


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("security.healthPort=9090", "security.healthPort: 9090 is the port of calls or of metrics, too"),
        ("security.healthPort=50050", "security.healthPort: 50050 is the port of calls or of metrics, too"),
        ('security.config.health=":1"', "security.config: leave out health; give security.healthPort"),
    ],
)
def test_a_port_for_health_that_cannot_be_is_refused(setting: str, why: str) -> None:
    done = template("--values", str(CHART / "ci/s3-tls-values.yaml"), "--set-json", setting)
    assert why in done.stderr


def test_a_release_needs_a_place_for_its_jobs() -> None:
    done = template("--set", "store.uri=s3://lab/neurons")
    assert done.returncode != 0
    assert "no place where jobs could run" in done.stderr
