"""The server's page in a browser: what a person sees is what the server's routes say."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from famjax.infer import shipped
from famjax.serve import fields
from famjax.serve.batch import Batch
from famjax.serve.server import Server
from tests.serve.browser import asked, browser, complaints
from tests.serve.running import ask, chat, serve

pytestmark = pytest.mark.slow

MOST = 200
SAID = "The pass key is 48213. Remember it."


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pass key model that comes with famjax."""
    folder = tmp_path_factory.mktemp("page") / "passkey"
    shipped.unpack("passkey", folder)
    return folder


def until(driver: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 300, poll_frequency=0.1).until(lambda _: condition())


def one(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def texts(driver: Any, selector: str) -> list[str]:
    return [found.text for found in driver.find_elements("css selector", selector)]


def send(driver: Any, text: str) -> None:
    one(driver, "#text").send_keys(text)
    one(driver, "#send").click()


def name_session(driver: Any, name: str) -> None:
    """As a person does: the field emptied, the name typed, and left with Tab."""
    one(driver, "#session").clear()
    one(driver, "#session").send_keys(name, "\t")


def picture_is_that_of(server: Server, driver: Any, name: str) -> None:
    """Tokens, updates and bytes, and a bar a layer with the root mean square of its feedback activations."""
    memory = ask(server, "GET", f"/v1/sessions/{name}/memory").json
    facts = f"{memory['tokens']:,} tokens read, {memory['updates']:,} updates, {memory['bytes']:,} bytes"
    until(driver, lambda: one(driver, "#facts").text == facts)
    norms = [float(np.sqrt(np.mean(np.square(layer["fam"])))) for layer in memory["layers"]]
    bars = driver.find_elements("css selector", "#picture rect")
    shown = [float(text) for text in texts(driver, "#picture text")[1 : 2 * len(norms) : 2]]
    assert shown == pytest.approx(norms, rel=5e-3)
    widths = np.array([float(bar.get_attribute("width")) for bar in bars])
    np.testing.assert_allclose(widths / widths.max(), np.array(norms) / max(norms), rtol=1e-5)
    assert all(bar.rect["width"] > 1 for bar in bars)


def fits(driver: Any) -> None:
    """Nothing reaches beyond the right edge, on a laptop and on a phone."""
    for width, height in ((1280, 800), (390, 844)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_chat_with_a_memory(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new session, a message, its answer while it is made, the picture of the memory; after a reload, the list of
    sessions with what each has read. Every request goes to this server, and the console stays silent."""
    first, rest = threading.Event(), threading.Event()
    decode = Batch.decode

    def in_two_parts(batch: Batch, at_once: int) -> Any:
        """Up to the first text that a person can see (no space, nor what a stop may begin with); the rest once the test
        has seen it."""
        if first.is_set() and not rest.wait(300):
            raise TimeoutError("the page has not shown the first text")
        found = decode(batch, at_once)
        if any(made is not None and made.text.strip() for _, made in found):
            first.set()
        return found

    with serve(model_dir, name="passkey", sessions=tmp_path / "s", max_rows=2, max_tokens=MOST) as server:
        chat(server, "hello", session="other", max_tokens=3)
        host = server.url.removeprefix("http://")
        monkeypatch.setattr(Batch, "decode", in_two_parts)
        # The page sends no seed, so the server draws one; this one is the same in every run.
        monkeypatch.setattr(fields, "os", SimpleNamespace(urandom=bytes))
        with browser() as driver:
            driver.get(server.url)
            until(driver, lambda: texts(driver, "#sessions button") != [])
            assert one(driver, "#model").text == "passkey"
            (other,) = texts(driver, "#sessions button")
            tokens = ask(server, "GET", "/v1/sessions/other").json["tokens"]
            assert other.split("\n") == ["other", f"{tokens} tokens"]
            assert one(driver, "#facts").text == "nothing read yet"
            name_session(driver, "mine")
            send(driver, SAID)
            begun = until(driver, lambda: texts(driver, "#log .model")[-1])
            assert one(driver, "#stop").is_displayed() and not rest.is_set()
            rest.set()
            until(driver, lambda: not one(driver, "#stop").is_displayed())
            (whole,) = texts(driver, "#log .model")
            assert whole.startswith(begun) and len(whole) > len(begun)
            assert texts(driver, "#log .user") == [SAID] and texts(driver, "#log .error") == []
            picture_is_that_of(server, driver, "mine")
            assert ask(server, "GET", "/v1/sessions/mine").json["tokens"] == len(f"User: {SAID}\nAssistant:") + MOST
            fits(driver)
            driver.refresh()
            until(driver, lambda: len(texts(driver, "#sessions button")) == 2)
            shown = [text.split("\n") for text in texts(driver, "#sessions button")]
            listed = ask(server, "GET", "/v1/sessions").json["data"]
            assert shown == [[session["id"], f"{session['tokens']} tokens"] for session in listed]
            assert one(driver, "#session").get_attribute("value") == "mine"  # the address names it
            picture_is_that_of(server, driver, "mine")
            driver.find_elements("css selector", "#sessions button")[1].click()
            picture_is_that_of(server, driver, "other")
            script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
            assert all(name.startswith(f"{server.url}/") for name in driver.execute_script(script))
            requests = asked(driver)
            assert {name for name, _ in requests} == {host}
            assert {"/", "/v1/models", "/v1/sessions", "/v1/chat/completions"} <= {path for _, path in requests}
            assert complaints(driver) == []


def test_without_sessions_the_page_sends_the_conversation(model_dir: Path) -> None:
    """On a server that keeps none: two messages in a row, the second after the first and its answer, as the tokens that
    the server has read say."""
    with serve(model_dir, name="passkey", max_rows=1, max_tokens=8, prefix_cache_mib=0) as server, browser() as driver:
        driver.get(server.url)
        until(driver, lambda: "--sessions DIR" in one(driver, "#which").text)
        assert not one(driver, "#session").is_enabled()
        read = []
        for number, said in enumerate(("One", "Two")):
            send(driver, said)
            until(driver, lambda count=number: len(texts(driver, "#log .model")) > count)
            until(driver, lambda: not one(driver, "#stop").is_displayed())
            read.append(server.service.engine.read_tokens)
        assert texts(driver, "#log .error") == []
        # The last token of a prompt is read with its answer.
        before = len("User: One\nAssistant:") - 1
        again = read[1] - read[0] - len("User: One\nAssistant:" + "\nUser: Two\nAssistant:") + 1
        assert read[0] == before and 0 < again <= 4 * 8
        assert complaints(driver) == []


def test_a_key_and_an_answer_that_is_stopped(model_dir: Path, tmp_path: Path) -> None:
    """Without the key the page says that one is needed; with it, an answer can be stopped, and leaves no session."""
    from famjax.serve.settings import _hashed

    settings = {"keys": (_hashed("secret"),), "sessions": tmp_path / "s", "max_rows": 1, "max_tokens": 10**6}
    with serve(model_dir, name="passkey", **settings) as server, browser() as driver:
        driver.get(server.url)
        until(driver, lambda: texts(driver, "#log .error") == ["this server needs a key: Authorization: Bearer KEY"])
        assert all("401" in message for message in complaints(driver))
        one(driver, "#key").send_keys("secret", "\t")
        until(driver, lambda: one(driver, "#model").text == "passkey")
        send(driver, SAID)
        until(driver, lambda: texts(driver, "#log .model") and texts(driver, "#log .model")[0])
        one(driver, "#stop").click()
        until(driver, lambda: texts(driver, "#log .error") == ["stopped; this turn is forgotten"])
        until(driver, lambda: server.service.engine.load() == (0, 0))
        assert ask(server, "GET", "/v1/sessions", headers={"Authorization": "Bearer secret"}).json["data"] == []
        assert complaints(driver) == []
