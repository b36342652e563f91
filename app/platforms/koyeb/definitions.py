"""What we tell Koyeb of a release: its definition, with secrets by reference."""

import hashlib

from app.platforms.base import ServiceSpec, Size
from app.platforms.koyeb.answers import Deployment
from app.platforms.koyeb.client import Json
from app.platforms.koyeb.common import MESH, variables
from app.settings import KoyebSettings

SERVICE = "web"
RELEASE = "SLIPWAY_RELEASE"
GRACE_SECONDS = 10
INTERVAL_SECONDS = 30
TIMEOUT_SECONDS = 5
RESTARTS = 3


def web(spec: ServiceSpec, size: Size, settings: KoyebSettings) -> Json:
    """Return the whole definition of a release but its region. Raises Rejected for a value that Koyeb would expand.

    An idle time beyond the plan's bounds becomes the nearest that it takes: a strict request was refused, another one warned.
    """
    idle = min(max(spec.idle_seconds, settings.min_idle_seconds), settings.max_idle_seconds)
    target: Json = {"sleep_idle_delay": {"deep_sleep_value": idle}}
    scaling: Json = {"min": min(spec.scale_min, 1), "max": 1}
    if spec.scale_min == 0:
        scaling["targets"] = [target]
    docker: Json = {"image": spec.image.reference}
    if spec.image.username is not None:
        docker["image_registry_secret"] = pull_secret(spec.service, spec.release)
    ours = {"PORT": str(spec.port), RELEASE: spec.release, "SLIPWAY_SERVICE": spec.service}
    plain = {**spec.env, **ours, "SLIPWAY_DIGEST": spec.image.digest}
    secret = [{"key": k, "secret": secret_name(spec.service, spec.release, k)} for k in spec.secrets]
    check = {"port": spec.port, "path": spec.health_path, "method": "GET"}
    return {
        "type": "WEB",
        "docker": docker,
        "ports": [{"port": spec.port, "protocol": "http"}],
        "routes": [{"port": spec.port, "path": "/"}],
        "env": [*variables(plain), *secret],
        "instance_types": [{"type": size.plan}],
        "scalings": [scaling],
        "health_checks": [
            {
                "grace_period": GRACE_SECONDS,
                "interval": INTERVAL_SECONDS,
                "restart_limit": RESTARTS,
                "timeout": TIMEOUT_SECONDS,
                "http": check,
            }
        ],
        "mesh": MESH,
    }


def release_of(deployment: Deployment) -> str | None:
    """Return which of our releases a deployment is of."""
    return next((v.value for v in deployment.definition.env if v.key == RELEASE), None)


def release_prefix(service: str, release: str) -> str:
    """Return how the names of a release's secrets begin; those of the whole service begin ``<service>-``."""
    return f"{service}-{_short(release, 8)}-"


def secret_name(service: str, release: str, key: str) -> str:
    """Return the name of one secret, of 63 characters at most; values leave no trace in it."""
    return f"{release_prefix(service, release)}{_short(key, 12)}"


def pull_secret(service: str, release: str) -> str:
    """Return the name of the credential that pulls a release's image."""
    return f"{release_prefix(service, release)}pull"


def _short(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
