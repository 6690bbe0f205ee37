"""Other models for a running server: those of its configs, which are read again."""

import logging
from collections.abc import Callable, Sequence

from bei.errors import SetupError
from bei.serving.registry import Registry, by_name
from bei.serving.service import Service
from bei.settings import LimitSettings, ObservationSettings, ServerSettings, Settings
from bei.settings.reference import settings_of

log = logging.getLogger("bei")

_OF_THE_SERVER = settings_of(ServerSettings, LimitSettings, ObservationSettings)
_CHANGING = ("alias",)
"""Settings of the server that change while it runs."""
_NEVER_SHOWN = ("api_key",)


def renew(registry: Registry, read: Callable[[], Sequence[Settings]]) -> None:
    """Serves the models of the configs that `read` reads. A model whose config did not change stays. One that changed
    or is new is loaded beside the others, and takes over when it is ready; then those that it replaces, and those that
    are gone, end after their requests. If anything fails nothing changes, and the log says why. Blocking."""
    registry.keeper.started.wait()
    if registry.is_draining:
        return
    made: list[Service] = []
    try:
        wanted = [_with_server_of(registry.settings, settings) for settings in _read(registry, read)]
        services, ended = _matched(registry, wanted, made)
        by_name(services)
        for service in made:
            registry.keeper.begin(service)
    except SetupError as exc:
        log.error("the configs are not taken over: %s", exc)
        for service in made:
            registry.keeper.drop(service)
        return
    registry.replace(services)
    registry.keeper.audience.replaced(services)
    registry.keeper.watch()
    log.info("the configs are read: %d models begin, %d end, %d stay", len(made), len(ended), len(services) - len(made))
    for service in ended:
        registry.keeper.drop(service)


def _read(registry: Registry, read: Callable[[], Sequence[Settings]]) -> Sequence[Settings]:
    """Raises SetupError."""
    found = read()
    for setting in _OF_THE_SERVER:
        before, now = getattr(registry.settings, setting.name), getattr(found[0], setting.name)
        if before != now and setting.name not in _CHANGING:
            shown = "" if setting.name in _NEVER_SHOWN else f" from {before} to {now}"
            log.warning("%s: the change%s needs a restart of the server", setting.flag, shown)
    return found


def _with_server_of(running: Settings, settings: Settings) -> Settings:
    kept = {of.name: getattr(running, of.name) for of in _OF_THE_SERVER if of.name not in _CHANGING}
    return settings.model_copy(update=kept)


def _matched(
    registry: Registry, wanted: Sequence[Settings], made: list[Service]
) -> tuple[list[Service], list[Service]]:
    """The services for these settings, those that run already among them, and the ones that end. Adds new ones to
    `made`. Raises SetupError."""
    running = {service.name: service for service in registry.services}
    services = []
    for settings in wanted:
        old = running.get(settings.served_model_name)
        if old is not None and _same(old.settings, settings):
            services.append(old)
            continue
        made.append(registry.make(settings))
        services.append(made[-1])
    return services, [service for service in running.values() if service not in services]


def _same(before: Settings, now: Settings) -> bool:
    ignored = dict.fromkeys(_CHANGING, ())
    return before.model_copy(update=ignored) == now.model_copy(update=ignored)
