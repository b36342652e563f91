"""What a request asks for is held against what the platforms can do, before anything of it is written.

With ``strict`` what can't be honoured is refused, and without it becomes a warning; what can't be done at all is refused anyway.
"""

import shutil

from app.context import Context
from app.errors import invalid
from app.platforms.base import Size, Traits, Unsupported
from app.requests import BuildRequest, GitSource, ServiceConfig
from app.settings import PULL_SETTINGS


def check_target(context: Context, request: BuildRequest) -> tuple[list[str], list[str]]:
    """Return the platforms to build on, in order, and warnings; Refusal (422) names the field that can't be honoured."""
    catalog, settings, warnings = context.catalog, context.settings, list[str]()
    if catalog.entry(request.platform) is None:  # also where nothing shall run: it is a slip of the pen
        raise invalid("platform", _unusable(context, request.platform, "services"))
    wanted = request.builder.platform
    first, asked = wanted or request.platform, request.builder.fallback
    candidates = [first, *(settings.builder_fallback if asked is None else asked)]
    usable = list(dict.fromkeys(c for c in candidates if catalog.usable(c) and catalog.entries[c].builders))
    for name in asked or ():
        if name not in usable:
            raise invalid("builder.fallback", _unusable(context, name, "builders"))
    if not usable or (wanted and usable[0] != wanted):
        raise invalid("builder.platform" if wanted else "platform", _unusable(context, first, "builders"))
    builder = usable[0]
    entry = catalog.entries[builder]
    if entry.traits.remote:
        _reachable(context, "builder.platform", builder)
    if problem := entry.problems.get("builders"):
        raise invalid("builder.platform", f"{builder} can't be used: {problem}")
    if (longest := entry.traits.max_runtime_seconds) and request.builder.timeout_seconds > longest:
        wish = f"{builder} builders run at most {longest} seconds"
        _cannot(request.strict, warnings, "builder.timeout_seconds", wish)
    size = Size(cpus=request.builder.cpus, memory_mb=request.builder.memory_mb)
    _check_size(context, builder, size, "builder", strict=request.strict, warnings=warnings, builders=True)
    # Where local is another process's, that one's builder says so.
    own = builder == "local" and context.platform(builder) is not None
    if isinstance(request.source, GitSource) and own and shutil.which("git") is None:
        raise invalid("source.kind", "this installation's builders have no git; send files or an archive instead")
    if request.service is not None:
        check_service(context, request.platform, request.service, strict=request.strict, warnings=warnings)
        # A builder builds for any; only who runs it must have it.
        if request.build.goarch not in catalog.entries[request.platform].traits.goarch:
            raise invalid("build.goarch", f"{request.platform} can't run {request.build.goarch} programs")
    return usable, warnings


def check_service(
    context: Context,
    platform: str,
    config: ServiceConfig,
    *,
    strict: bool,
    warnings: list[str],
    prefix: str = "service.",
) -> None:
    """Check a service's config against its platform's traits."""
    entry = context.catalog.entry(platform)
    if entry is None or not entry.configured or not entry.services:
        raise invalid("platform", _unusable(context, platform, "services"))
    traits, scale = entry.traits, config.scale
    if traits.remote:
        _reachable(context, "platform", platform)
    if problem := entry.problems.get("services"):
        raise invalid("platform", f"{platform} can't be used: {problem}")
    if traits.pulls_itself:
        _pullable(context, platform, traits)
    if scale.min == 0:
        if traits.scale_to_zero == "none":
            _cannot(strict, warnings, f"{prefix}scale.min", f"{platform} can't scale to zero; use 1")
        low, high = traits.min_idle_seconds, traits.max_idle_seconds
        if scale.idle_seconds < low or (high is not None and scale.idle_seconds > high):
            bounds = f"{low} to {high} idle seconds" if high else f"{low} s or more"
            _cannot(strict, warnings, f"{prefix}scale.idle_seconds", f"{platform} sleeps after {bounds}")
    size = Size(cpus=config.cpus, memory_mb=config.memory_mb)
    _check_size(context, platform, size, prefix.rstrip("."), strict=strict, warnings=warnings, builders=False)


def _check_size(
    context: Context, platform: str, size: Size, field: str, *, strict: bool, warnings: list[str], builders: bool
) -> None:
    """Check that the platform has a plan of at least this size."""
    held = context.platform(platform)
    capability = held and (held.builders if builders else held.services)
    if not capability:
        return  # the platform belongs to another process, which fits the size at launch
    try:
        capability.fit(size)
    except Unsupported as e:
        _cannot(strict, warnings, f"{field}.memory_mb" if field else "memory_mb", e.message)


def _unusable(context: Context, platform: str, capability: str) -> str:
    """Return why a platform can't be named in a request, and what could be instead."""
    names = [n for n, e in context.catalog.entries.items() if e.configured and getattr(e, capability)]
    others = f"offered here: {', '.join(names)}" if names else "none is offered here"
    entry = context.catalog.entry(platform)
    if entry is None:
        return f"there is no platform {platform!r}; {others}"
    if not entry.configured:
        missing = f" (missing: {', '.join(entry.missing)})" if entry.missing else ""
        return f"{platform} is not configured{missing}; {others}"
    return f"{platform} has no {capability}; {others}"


def _cannot(strict: bool, warnings: list[str], field: str, message: str) -> None:
    if strict:
        raise invalid(field, message, reason="cannot_honour")
    warnings.append(f"{field}: {message}")


def _reachable(context: Context, field: str, platform: str) -> None:
    settings = context.settings
    for name, value in (("SLIPWAY_PUBLIC_URL", settings.public_url), ("SLIPWAY_BUILDER_IMAGE", settings.builder_image)):
        if value is None:
            raise invalid(field, f"{platform} runs on other machines and needs the setting {name}")


def _pullable(context: Context, platform: str, traits: Traits) -> None:
    """Refuse a platform that could not pull the image when it wants to; the embedded registry makes a credential for it."""
    settings = context.settings
    if settings.registry and not settings.registry_username:
        return  # open to everybody
    if not traits.private_registry:
        raise invalid("platform", f"{platform} pulls no private image on its plan: SLIPWAY_{platform.upper()}__PLAN")
    if settings.registry and not settings.registry_pull:
        raise invalid(
            "platform", f"{platform} pulls images by itself and needs the settings {', '.join(PULL_SETTINGS)}"
        )
