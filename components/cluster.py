"""A Kubernetes API server: objects read and applied. Credentials come from the kubeconfig or from the pod that asks."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from features.errors import ConcordantError

MANAGER = "concordant"
Object = dict[str, Any]


class ClusterError(ConcordantError):
    """The API server refuses or does not answer."""


class Forbidden(ClusterError):
    """This account may not do what was asked."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """`context` of the kubeconfig; None takes the current one, or the pod's own account where there is no kubeconfig."""

    context: str | None = None

    @cached_property
    def client(self) -> Any:
        """The official client's ApiClient. Raises ClusterError where no cluster is set up."""
        from kubernetes import client, config
        from urllib3 import Retry

        settings = client.Configuration()
        try:
            named = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())  # now, not when the package was imported
            if self.context or os.environ.get("KUBECONFIG") or Path(named).is_file():
                config.load_kube_config(config_file=named, context=self.context, client_configuration=settings, persist_config=False)
            else:
                config.load_incluster_config(client_configuration=settings)
        except Exception as error:  # many kinds; their texts may quote the file
            raise ClusterError(
                f"No cluster is set up ({type(error).__name__}). Set KUBECONFIG, or give --context (see `kubectl config get-contexts`)."
            ) from None
        settings.retries = Retry(2, redirect=0, allowed_methods=("GET",), backoff_factor=0.2)  # credentials go to no other host
        return client.ApiClient(settings)

    @property
    def address(self) -> str:
        """Of the API server."""
        return str(self.client.configuration.host)

    def get(self, path: str, *, bare: bool = False) -> Object | None:
        """What lies at a path; None where there is nothing. `bare`: its metadata only, so no value of a secret. Raises ClusterError."""
        return self._ask("GET", path, {}, bare=bare)

    def apply(self, path: str, found: Object) -> Object:
        """Server-side apply: our fields are set, fields of ours that are no longer named go, unknown ones are refused."""
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        made = self._ask("PATCH", path, query, found)
        if made is None:
            raise ClusterError(f"{self.address} knows nothing at {path}.")
        return made

    def _ask(self, method: str, path: str, query: dict[str, str], body: Object | None = None, *, bare: bool = False) -> Object | None:
        from kubernetes.client.exceptions import ApiException

        kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        wanted = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json" if bare else "application/json"
        headers = {"Accept": wanted, "Content-Type": kind}
        given = quote(path) + (f"?{urlencode(query)}" if query else "")
        try:
            answer = self.client.call_api(
                given, method, header_params=headers, body=body, auth_settings=["BearerToken"], _preload_content=False, _request_timeout=30
            )[0]
            return json.loads(answer.data)
        except ApiException as error:
            if error.status == 404:
                return None
            kind_of = Forbidden if error.status == 403 else ClusterError
            raise kind_of(f"The cluster refused to {'apply' if body else 'show'} {path} ({error.status}): {_reason(error.body)}") from None
        except ConcordantError:
            raise
        except Exception as error:
            raise ClusterError(
                f"The cluster at {self.address} did not answer ({type(error).__name__}). Is it up, and is this its API?"
            ) from None


def _reason(body: Any) -> str:
    try:
        return " ".join(str(json.loads(body)["message"]).split())[:400]
    except (ValueError, TypeError, KeyError):
        return "it gave no reason."
