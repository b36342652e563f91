"""What lets somebody else reach our images: a builder to push one, a platform to pull one."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class PushGrant:
    """What a builder needs to push: ``token`` is the Bearer for pull and push on ``repository`` alone."""

    registry: str
    repository: str
    token: str = field(repr=False)
    expires_at: float


@dataclass(frozen=True, kw_only=True)
class PullGrant:
    """What a platform needs to pull one image; the credential is None where the registry is open."""

    registry: str
    repository: str
    digest: str
    username: str | None
    password: str | None = field(repr=False)
