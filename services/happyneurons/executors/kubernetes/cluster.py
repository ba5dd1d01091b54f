"""The few calls of the Kubernetes API that are needed, by the official client; our errors instead of its."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from happyneurons.errors import HappyError, NotFoundError, UnavailableError, UserError
from happyneurons.executors.kubernetes.config import KubernetesAccess
from happyneurons.executors.kubernetes.manifest import Record

TIMEOUT_S = 10.0
PAGE = 500
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Cluster:
    """Jobs and pods of one namespace. Thread-safe."""

    def __init__(self, access: KubernetesAccess) -> None:
        """Raises UserError where there is no access, or no client."""
        try:
            import kubernetes
        except ImportError:
            raise UserError(
                "executor kubernetes needs the official client: pip install 'happyneurons[kubernetes]'"
            ) from None
        configuration = kubernetes.client.Configuration()
        namespace = "default"
        try:
            if access.kubeconfig is None and OWN_NAMESPACE.exists():
                kubernetes.config.load_incluster_config(configuration)
                namespace = OWN_NAMESPACE.read_text().strip()
            else:
                file = str(access.kubeconfig.expanduser()) if access.kubeconfig else None
                context = access.context or None
                kubernetes.config.load_kube_config(file, context=context, client_configuration=configuration)
                contexts, current = kubernetes.config.list_kube_config_contexts(file)
                chosen = next((c for c in contexts if c["name"] == access.context), current)
                namespace = chosen["context"].get("namespace") or namespace
        except kubernetes.config.ConfigException as error:
            raise UserError(f"no access to Kubernetes: {error}") from None
        configuration.retries = False  # who asks decides whether to ask again
        self.namespace, self.host = access.namespace or namespace, configuration.host
        self._client = kubernetes.client.ApiClient(configuration)
        self._batch = kubernetes.client.BatchV1Api(self._client)
        self._core = kubernetes.client.CoreV1Api(self._client)

    def close(self) -> None:
        self._client.close()

    def create_job(self, manifest: Record) -> bool:
        """False if there is one of that name. Raises UserError for what is not valid, UnavailableError."""
        try:
            self._call(self._batch.create_namespaced_job, body=manifest)
        except _Exists:
            return False
        return True

    def jobs(self, selector: str) -> list[Record]:
        """Jobs with these labels, as the API writes them."""
        return self._list(self._batch.list_namespaced_job, selector)

    def pods(self, selector: str) -> list[Record]:
        """Pods with these labels, as the API writes them."""
        return self._list(self._core.list_namespaced_pod, selector)

    def patch_job(self, name: str, patch: Record) -> None:
        """Merge something into a Job. Raises NotFoundError."""
        self._call(self._batch.patch_namespaced_job, name=name, body=patch)

    def delete_job(self, name: str) -> None:
        """Remove a Job and its pods; nothing happens if there is none."""
        with contextlib.suppress(NotFoundError):
            self._call(self._batch.delete_namespaced_job, name=name, propagation_policy="Background")

    def log_tail(self, pod: str, limit_bytes: int) -> str:
        """The end of what a pod printed; empty where it is gone."""
        with contextlib.suppress(NotFoundError):
            answer = self._call(self._core.read_namespaced_pod_log, name=pod, limit_bytes=limit_bytes, tail_lines=200)
            return str(answer.decode(errors="replace"))
        return ""

    def _list(self, method: Any, selector: str) -> list[Record]:
        found: list[Record] = []
        more = ""
        while True:
            page = {"_continue": more} if more else {}
            answer = json.loads(self._call(method, label_selector=selector, limit=PAGE, **page))
            found += answer["items"]
            more = (answer.get("metadata") or {}).get("continue") or ""
            if not more:
                return found

    def _call(self, method: Any, **arguments: Any) -> bytes:
        with _errors(self.host):
            # As it comes: the client's own objects take most of the time of a long list.
            answer = method(
                namespace=self.namespace, _preload_content=False, _request_timeout=TIMEOUT_S, **arguments
            )  # fmt: skip
            data: bytes = answer.data
            return data


class _Exists(HappyError):
    """There is one of that name."""


@contextlib.contextmanager
def _errors(host: str) -> Iterator[None]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    where = f"the Kubernetes API at {host}"
    try:
        yield
    except ApiException as error:
        text = _message(error)
        if error.status == 404:
            raise NotFoundError(f"{where}: {text}") from error
        if error.status == 409:
            raise _Exists(text) from error
        if error.status == 401:
            raise UserError(f"{where} does not accept our token: {text}") from error
        if error.status == 403 and "exceeded quota" not in text:
            raise UserError(
                f"{where}: {text}; our account needs rights for jobs, pods and pods/log (docs/kubernetes.md)"
            ) from error
        if error.status in (400, 422):
            raise UserError(f"{where} refuses the Job: {text}") from error
        raise UnavailableError(f"{where}: {text}") from error
    except (HTTPError, OSError) as error:
        raise UnavailableError(f"{where} does not answer ({type(error).__name__})") from error


def _message(error: Any) -> str:
    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = error.reason
    return f"{text} ({error.status})"
