"""What can go wrong with a registry or an image; each class says what the caller does next."""

from collections.abc import Mapping
from dataclasses import dataclass, field


class RegistryError(Exception):
    """Base of all errors of this package; the text never holds a credential."""


class RegistryUnavailable(RegistryError):
    """Nobody answered, or not sensibly: try again, after ``retry_after`` seconds when given."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RegistryDenied(RegistryError):
    """The registry refused us, or we refused it: the credential, its scope, a quota or the set-up is at fault."""


class ImageNotFound(RegistryError):
    """There is no such manifest or blob in that repository."""


class ImageInvalid(RegistryError):
    """What the registry holds is not what it should be: a wrong digest, size, form, or an image we can't run."""


class ReferenceInvalid(RegistryError, ValueError):
    """A repository name, tag, digest or reference that the OCI grammar does not have."""


@dataclass
class Fault(Exception):
    """A refusal of the embedded registry: HTTP status and an error code of the OCI distribution specification."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
