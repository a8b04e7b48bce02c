"""The page in a real browser: headless Chromium, told what to do through its debugging pipe.

Debian and Ubuntu have it as the package `chromium`. Without it these tests are skipped.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from alignez_bake.report.html.page import report_page
from tests.report.html_reports import full_report, hostile_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package is `chromium`)")

PHONE, DESKTOP = (390, 844), (1280, 900)
PATIENCE = 120
# The browser reads commands from descriptor 3 and writes to 4.
LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
FIGURES = """
[...document.querySelectorAll("figure")].map(figure => {
  const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")];
  const inside = texts.every(text => {
    const one = text.getBoundingClientRect();
    return one.left > box.left - 2 && one.right < box.right + 2 && one.top > box.top - 2 && one.bottom < box.bottom + 2;
  });
  return {
    name: figure.id, x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height,
    inside, texts: texts.length,
    smallest: Math.min(...texts.map(text => parseFloat(getComputedStyle(text).fontSize))) * svg.getScreenCTM().a,
    font: getComputedStyle(texts[0]).fontFamily,
  };
})
"""


class Browser:
    """One headless browser with one page; collects what goes wrong."""

    def __init__(self, profile):
        down, commands = os.pipe()
        answers, up = os.pipe()
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
        ]
        flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        launcher = [sys.executable, "-c", LAUNCHER, str(down), str(up)]
        self.process = subprocess.Popen(
            [*launcher, CHROMIUM, *flags],
            pass_fds=(down, up),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down)
        os.close(up)
        self._commands, self._answers, self._read, self._number = commands, answers, b"", 0
        self.events: list[dict] = []
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters):
        """The answer to one command; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser is gone"
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def open(self, path, size, scheme="light", media=""):
        self.events.clear()
        width, height = size
        mobile = size == PHONE
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", media=media, features=[feature])
        self.send("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")

    def value(self, script: str):
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"]["value"]

    def complaints(self) -> list[str]:
        """Console messages, errors and violations of the policy so far."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def picture(self) -> np.ndarray:
        """The whole page as pixels [height, width, 3], one for each of its own."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def close(self) -> None:
        self._session = None
        self.send("Browser.close")
        self.process.wait(PATIENCE)
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(full_report()), encoding="utf-8")
    return path


def within(picture, box):
    """The pixels of a box of the page."""
    left, top = round(box["x"]), round(box["y"])
    return picture[top : top + round(box["height"]), left : left + round(box["width"])]


def colours(pixels):
    """How many different ones there are."""
    return len(np.unique(pixels.reshape(-1, 3).astype(int) @ (65536, 256, 1)))


def colour(browser, selector, of="color"):
    return browser.value(f"getComputedStyle(document.querySelector({selector!r})).{of}")


def check_page(browser, path, size, scheme):
    """Open a page; it loads nothing, complains of nothing, scrolls down alone, and draws every figure."""
    browser.open(path, size, scheme)
    figures = browser.value(FIGURES)
    whole = browser.picture()
    for figure in figures:
        assert figure["width"] > 300, figure
        assert figure["height"] > 100, figure
        assert figure["texts"] > 4, figure
        assert figure["inside"], figure
        assert figure["smallest"] > 8, figure
        assert "DejaVu" not in figure["font"]
        drawn = within(whole, figure).reshape(-1, 3).astype(int)
        ground = np.array([255, 255, 255] if scheme == "light" else [16, 19, 23])
        # Lines, markers and letters: neither an empty box, nor one that is filled.
        share = (np.abs(drawn - ground).max(axis=1) > 60).mean()
        assert 0.005 < share < 0.3, (figure["name"], share)
        assert colours(drawn) > 20
    assert browser.requests() == [path.as_uri()]
    assert not browser.complaints()
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    return [figure["name"] for figure in figures]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_loads_nothing_complains_of_nothing_and_draws_every_figure(browser, page, size, scheme):
    assert len(check_page(browser, page, size, scheme)) == 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_so_does_the_page_of_a_whole_way(browser, reported, size, scheme):
    path = reported / "aligned" / "alignez" / "report.html"
    names = check_page(browser, path, size, scheme)
    # Of both layers, before and after, beside those of the fit.
    assert len(names) == len(set(names)) == path.read_text(encoding="utf-8").count("<svg") > 4
    assert browser.value("document.querySelector('h1').innerText") == "aligned"


def test_it_follows_the_scheme(browser, page):
    browser.open(page, DESKTOP, "light")
    light = [colour(browser, "body", "backgroundColor"), colour(browser, "figure svg text", "fill")]
    browser.open(page, DESKTOP, "dark")
    dark = [colour(browser, "body", "backgroundColor"), colour(browser, "figure svg text", "fill")]
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(16, 19, 23)"
    assert light[1] != dark[1]


def test_samples_lie_side_by_side_and_stack_on_a_phone(browser, page):
    tops = "[...document.querySelector('.sides').children].map(side => side.getBoundingClientRect().top)"
    browser.open(page, DESKTOP)
    before, after = browser.value(tops)
    assert before == after
    browser.open(page, PHONE)
    before, after = browser.value(tops)
    assert after > before + 20


def test_wide_tables_scroll_by_themselves(browser, page):
    browser.open(page, PHONE)
    scrolls = "[...document.querySelectorAll('.scroll')].map(one => one.scrollWidth > one.clientWidth)"
    assert any(browser.value(scrolls))
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")


def test_print_is_black_on_white(browser, page):
    browser.open(page, DESKTOP, "dark", media="print")
    assert colour(browser, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert colour(browser, "nav", "display") == "none"


def test_texts_of_others_run_nothing_and_load_nothing(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_page(hostile_report()), encoding="utf-8")
    browser.open(path, PHONE)
    assert browser.requests() == [path.as_uri()]
    assert not browser.complaints()
    assert not browser.value("document.querySelectorAll('script, img').length")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    "harm",
    [
        "<script>console.log(1)</script>",
        "<img src='http://127.0.0.1:9/x.png'>",
        "<script src='x.js'></script>",
    ],
    ids=["a script", "a picture", "a file beside it"],
)
def test_the_policy_forbids_what_is_not_the_pages_own_and_these_tests_would_see_it(browser, page, tmp_path, harm):
    path = tmp_path / "report.html"
    path.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{harm}"), encoding="utf-8")
    browser.open(path, DESKTOP)
    (complaint,) = browser.complaints()
    assert "Content Security Policy" in complaint


def test_a_figure_without_lines_would_be_seen(browser, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(
        page.read_text(encoding="utf-8").replace("</style>", "svg * { display: none }</style>"), encoding="utf-8"
    )
    browser.open(path, DESKTOP)
    box = next(figure for figure in browser.value(FIGURES) if figure["name"] == "rates")
    assert colours(within(browser.picture(), box)) == 1


def test_nothing_but_a_title_is_a_page_too(browser, tmp_path):
    path = tmp_path / "report.html"
    empty = replace(full_report(), **dict.fromkeys(("levels", "rates", "samples", "frontier", "sites"), ()))
    path.write_text(report_page(replace(empty, drift=None, verdict=None)), encoding="utf-8")
    browser.open(path, PHONE)
    assert not browser.complaints()
    assert "Not measured or not recorded" in browser.value("document.body.innerText")
