"""Which way set each setting: a flag, the environment or the config. The others have their defaults."""

import os
from collections.abc import Mapping
from typing import Any

from bei.settings.config import raw_block, variables_of
from bei.settings.keys import OBEYED, leaves
from bei.settings.reference import settings_of
from bei.settings.settings import Settings
from bei.settings.several import Deployment


def set_by(model: Deployment, flags: Mapping[str, Any]) -> dict[str, list[str]]:
    """Way → names of settings, each under the way that counts. The config's variables are the config's."""
    by_variable = {one.variable: one.name for one in settings_of(Settings)}
    keys = (OBEYED.get(key) for key, value in leaves(raw_block(model.config) or {}) if value is not None)
    of_config = {*filter(None, keys), *_named(by_variable, {**variables_of(model.config), **model.shared})}
    of_environment = _named(by_variable, os.environ)
    given = {name for name, value in {**flags, **model.flags}.items() if value not in (None, ())}
    ways = {"flag": given, "environment": of_environment - given, "config": of_config - of_environment - given}
    return {way: sorted(names) for way, names in ways.items() if names}


def _named(by_variable: Mapping[str, str], variables: Mapping[str, str]) -> set[str]:
    return {by_variable[name] for name in variables if name in by_variable}
