"""Chromium without a window, for tests of the server's page."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES, DRIVER = ("chromium", "chromium-browser", "google-chrome"), "chromedriver"


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A selenium driver that logs its console and its requests. Without a browser the test fails: a page that was never
    opened is not tested."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which(DRIVER)
    if found is None or driver is None:
        pytest.fail("this test opens the page in Chromium: apt-get install chromium chromium-driver", pytrace=False)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = found
    flags = ["--headless=new", "--window-size=1280,800", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    # Nothing of its own on the net; names other than the loopback's address lead nowhere.
    flags += ["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    for flag in [*flags, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
    try:
        running.set_script_timeout(300)
        yield running
    finally:
        running.quit()


def complaints(driver: Any) -> list[str]:
    """Warnings and errors of the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def asked(driver: Any) -> set[tuple[str, str]]:
    """(host with port, path) of every request and socket since the last call."""
    found = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        fields = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(fields["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            url = urlsplit(fields["url"])
        else:
            continue
        found.add((url.netloc, url.path))
    return found
