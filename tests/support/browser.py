"""Debian's Chromium with its driver: the machine's own, or the one of .venv-browser (tests/clients/chromium.py)."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.support.servers import ROOT

UNPACKED = ROOT / ".venv-browser" / "root"
QUIET = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
    *("disable-background-networking", "disable-component-update"),
)


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """A browser that asks nobody but the servers of the tests. Its profile is in `folder`."""
    program, driver, environment = _programs()
    options = webdriver.ChromeOptions()
    options.binary_location = str(program)
    for flag in (*QUIET, f"user-data-dir={folder / 'profile'}", "window-size=1100,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(str(driver), env={**os.environ, "HOME": str(folder), **environment})
    started = webdriver.Chrome(options=options, service=service)
    try:
        yield started
    finally:
        started.quit()


def _programs() -> tuple[Path, Path, dict[str, str]]:
    """Chromium, its driver, and the variables that they need."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is not None and driver is not None:
        return Path(program), Path(driver), {}
    if not UNPACKED.exists():
        pytest.skip("no Chromium with its driver, and none was fetched (make .venv-browser/ok)")
    libraries = UNPACKED / "usr/lib/x86_64-linux-gnu"
    environment = {
        "LD_LIBRARY_PATH": f"{libraries}:{libraries / 'pulseaudio'}",
        "FONTCONFIG_PATH": str(UNPACKED / "etc/fonts"),
    }
    return UNPACKED / "usr/lib/chromium/chromium", UNPACKED / "usr/bin/chromedriver", environment
