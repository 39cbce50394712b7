"""A browser, and somebody who reads a page in it."""

import json
import re
import shutil
import time
from contextlib import contextmanager

import pytest

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,900"
)


class Reader:
    """Somebody who reads a page in the browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path, anew=True):
        """anew: False where a test does not care what others did with the page."""
        if not anew and self.driver.current_url == path.as_uri():
            return self
        for kind in ("performance", "browser"):
            self.driver.get_log(kind)
        self.driver.get(path.as_uri())
        self.until("document.readyState === 'complete' && document.getElementById('count').textContent", 30)
        return self

    def do(self, script, *words):
        return self.driver.execute_script(script, *words)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def names(self):
        return self.do(
            "return [...document.querySelectorAll('#gallery .about > .name:first-child')].map(e => e.title)"
        )

    def count(self):
        return self.one("#count").text

    def set(self, name, value):
        """Set a control, and wait for the gallery to follow."""
        self.follow(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )

    def follow(self, script, *words):
        """Run a script that changes the gallery, until the count beneath the controls is written anew."""
        watch = "new MutationObserver(() => arguments[arguments.length - 1]()).observe(document.getElementById('count'), {childList: true});"
        self.driver.execute_async_script(watch + script, *words)

    def press(self, *keys):
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key)).perform()

    def focused(self):
        return self.do(
            "const e = document.activeElement; return e.dataset.i ? e.querySelector('.name').title : e.id || e.className"
        )

    def until(self, script, seconds=5.0):
        end = time.monotonic() + seconds
        while not (found := self.do(f"return {script}")):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.03)
        return found

    @contextmanager
    def screen(self, width):
        """A screen of this width, a phone's below 500 pixels."""
        is_phone = width < 500
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": is_phone}
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": is_phone})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})

    def complaints(self):
        """Errors in the console, and requests for anything but the page itself and what is in it."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        requests = [
            e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
        ]
        assert any(url.startswith("file:") for url in requests)
        others = [url for url in requests if not re.match(r"data:|file:.*[.]html$", url)]
        return self.driver.get_log("browser") + others


def start_browser():
    """Chromium, which logs its errors and requests; skips the test without it."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
