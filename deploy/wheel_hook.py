"""Puts compiled libraries into a wheel, and their platform into its name.

BEI_WHEEL_LIBRARIES is their folder, BEI_WHEEL_PLATFORM such as manylinux_2_28_x86_64. Without them a wheel has none,
and runs anywhere that has a compiler.
"""

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = os.environ.get("BEI_WHEEL_LIBRARIES")
        if folder:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{os.environ['BEI_WHEEL_PLATFORM']}"
            build_data["force_include"][folder] = "bei/engines/native/built"
