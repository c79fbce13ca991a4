"""The website in a browser: it builds without a warning, loads nothing from elsewhere, its links
lead somewhere, sliders move, and the live page samples what PyTorch samples."""

import functools
import html
import http.server
import re
import shutil
import threading
import urllib.parse

import numpy as np
import pytest
import torch

import nag
from companion.site import build
from nag.support.paths import RESULTS

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
VISITED = (
    "index",
    "learn",
    "results",
    "docs/claims",
    "docs/module_map",
    "pages/00_start_here",
    "pages/09_claims",
    "api/nag.guidance",
    "api/nag.shift",
)


SET = """(node, value) => {
  node.value = value;
  node.dispatchEvent(new Event("input", {bubbles: true}));
}"""
LISTEN = """() => {
  const form = document.getElementById("live-form");
  window.found = new Promise((done) =>
    form.addEventListener("sampled", (event) => done(event.detail), {once: true}));
}"""
ROWS = "Array.from(document.getElementById('live-form').last, (row) => Array.from(row))"
DRAWS = """import("./_static/sampler.js").then(({normal}) => {
  const draw = normal(0);
  return Array.from({length: 5}, () => Array.from(draw(7840)));
})"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    assert build.build(folder / "html", folder / "work") == 0, "Sphinx warned, see above"
    return folder / "html"


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as play:
        yield play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def visit(browser, address):
    """Opens a page and returns it; afterwards nothing may have gone wrong on it."""
    faults, contexts = [], []

    def open_page(name, **options):
        context = browser.new_context(**options)
        contexts.append(context)

        def local_only(route):
            if route.request.url.startswith((address, "data:", "blob:")):
                route.continue_()
            else:
                faults.append(f"request to {route.request.url}")
                route.abort()

        context.route("**/*", local_only)
        page = context.new_page()
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "response", lambda r: faults.append(f"{r.status} {r.url}") if r.status >= 400 else None
        )
        page.goto(f"{address}{name}.html")
        page.wait_for_load_state("networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    names = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in pages.items()}
    assert len(pages) > 100
    broken, elsewhere = [], []
    for path, text in pages.items():
        elsewhere += re.findall(
            r'<(?:script|img|link|iframe)[^>]*(?:src|href)="((?:https?:)?//[^"]+)', text
        )
        for target in set(re.findall(r'(?:href|src)="([^"]+)"', text)):
            target = html.unescape(target)
            if re.match(r"[a-z]+:|//", target):
                continue
            file, _, anchor = urllib.parse.unquote(target).partition("#")
            there = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not there.exists() or (anchor and there in names and anchor not in names[there]):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == [] and elsewhere == []


def test_figures_have_alternative_texts(site):
    missing = [
        f"{path.relative_to(site)}: {image}"
        for path in site.rglob("*.html")
        for image in re.findall(r"<img[^>]*>", path.read_text(encoding="utf-8"))
        if not re.search(r'alt="[^"]+"', image)
    ]
    assert missing == []


@pytest.mark.parametrize("name", VISITED)
def test_a_page_opens_on_a_phone(visit, name):
    page = visit(name, viewport={"width": 390, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("mjx-merror").count() == 0
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour)[:3])) < 60
    assert page.locator("h1").count() == 1


def sampled(page, **settings):
    """The two rows (10, 1, 28, 28) that the live page samples, and what it says of them."""
    for name, value in settings.items():
        page.eval_on_selector(f"#live-form [name={name}]", SET, str(value))
    page.evaluate(LISTEN)
    page.click("button[value=same]")
    assert page.locator("button[value=same]").is_disabled()
    detail = page.evaluate("window.found")
    assert not page.locator("button[value=same]").is_disabled()
    rows = [np.array(row, dtype="float32") for row in page.evaluate(ROWS)]
    return [row.reshape(10, 1, 28, 28) for row in rows], detail


def reference(w, cfg, labels, sampler, times, noise):
    terms = [nag.noise_awareness(float(w)), nag.classifier_free(cfg)]
    field = nag.GuidedField(nag.load("sit-mini"), labels, terms)
    return nag.last(sampler(field, noise((1, 28, 28)), times, noise)).numpy()


def test_the_live_page_samples_what_pytorch_samples(visit):
    page = visit("live")
    rows, _ = sampled(page, sampler="euler", w=2, cfg=1.5, steps=4, **{"class": 7})
    for row, w in zip(rows, (0, 2), strict=True):
        noise, labels = nag.ImageNoise(range(10)), torch.full((10,), 7)
        expected = reference(w, 1.5, labels, nag.euler, nag.uniform(4), noise)
        assert np.abs(row - expected).max() < 1e-4 < np.abs(rows[0] - rows[1]).max()


def test_the_live_page_samples_the_stochastic_sampler_too(visit):
    """With the noise that the page draws."""
    page = visit("live")
    rows, detail = sampled(page, sampler="euler_maruyama", w=3, cfg=1, steps=5, **{"class": "all"})
    draws = page.evaluate(DRAWS)
    for row, w in zip(rows, (0, 3), strict=True):
        start = nag.ImageNoise(range(10))((1, 28, 28))
        stream = iter([start, *(torch.tensor(d).view(10, 1, 28, 28) for d in draws)])
        times = nag.time_grid("euler_maruyama", 5)
        expected = reference(
            w, 1.0, torch.arange(10), nag.euler_maruyama, times, lambda _, s=stream: next(s)
        )
        assert np.abs(row - expected).max() < 1e-4
    assert np.abs(np.array(draws).std() - 1) < 0.02 and abs(np.mean(draws)) < 0.02
    assert detail["shift"][0] > 0.05  # so few steps leave much noise
    assert "Done in" in page.inner_text("#live-status")
    assert page.locator("#live-chart polyline.line").count() == 2


def test_the_live_page_by_keyboard(visit):
    page = visit("live", viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.focus("[name=w]")
    before = page.input_value("[name=w-shown]")
    page.keyboard.press("ArrowRight")
    assert float(page.input_value("[name=w-shown]")) == float(before) + 0.5
    for field in page.locator("#live-form select, #live-form input").all():
        assert field.evaluate("(node) => node.labels.length") == 1
    assert page.locator("canvas[aria-label], svg[aria-label]").count() == 3


@pytest.mark.skipif(
    not (RESULTS / "explorer/data.json").is_file(), reason="the explorer has no data yet"
)
def test_the_explorer_follows_its_sliders(visit):
    page = visit("explorer", viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    def shown():
        page.wait_for_timeout(300)
        curve = page.locator("#explorer-shift polyline.nag").get_attribute("points")
        picture = page.eval_on_selector("#explorer-nag", "(canvas) => canvas.toDataURL()")
        return page.inner_text("#explorer-said"), curve, picture

    before = shown()
    page.focus("[name=w]")
    page.keyboard.press("ArrowLeft")
    after = shown()
    assert all(a != b for a, b in zip(before, after, strict=True))
    page.select_option("[name=family]", "dit")
    assert "DiT" in page.inner_text("option:checked >> nth=0") and shown()[1] != after[1]
    assert page.locator("#explorer-posterior polyline").count() == 3
