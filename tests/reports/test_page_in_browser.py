"""The report page in a real browser: orders, filters, the keyboard, what shows on hover, dark and narrow screens."""

import io
import re
import time

import numpy as np
import pytest
from helpers.browser import Reader, start_browser
from helpers.data import make_pictures
from helpers.pages import ODD, VOTES, a_page, evaluate
from PIL import Image

from iaa.reports import charts
from iaa.reports.html_page import Photo, write_page

pytestmark = pytest.mark.slow

FIGURES = [
    ["", "this run", "95 % interval", "published"],
    ["SRCC", "0.7000", "0.6900 to 0.7100", "0.7596, above"],
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a landscape and a portrait picture."""
    folder = tmp_path_factory.mktemp("pictures")
    make_pictures(folder, ["wide.jpg"], size=(600, 900))
    make_pictures(folder, ["tall.png"], size=(400, 200))
    return folder


@pytest.fixture(scope="module")
def browser():
    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def reader(browser):
    return Reader(browser)


def many(pictures, count=40):
    """Photographs with everything there is to show; the first two could not be read."""
    rng = np.random.default_rng(5)
    photos = [Photo(ODD, None, None, error="cut short"), Photo("gone.jpg", None, None, error="no such file")]
    for row in range(2, count):
        score = float(rng.uniform(2, 9))
        photos.append(
            Photo(
                f"photo {row}.jpg",
                pictures / ("tall.png" if row % 3 else "wide.jpg"),
                score,
                votes=VOTES,
                other_votes=VOTES[::-1],
                attention=rng.dirichlet(np.ones(49)).reshape(7, 7),
                other=float(np.clip(score + rng.normal(), 1, 10)) if row % 7 else None,
                numbers={"below": float(rng.uniform()), "spread": float(rng.uniform())},
            )
        )
    return photos


@pytest.fixture(scope="module")
def shown(tmp_path_factory, pictures):
    """A page with everything in it, and its photographs."""
    path, photos = tmp_path_factory.mktemp("page") / "all of it.html", many(pictures)
    pairs = np.array([(photo.score, photo.other) for photo in photos if photo.other is not None])
    drawn = [charts.distribution({"score": pairs[:, 0]}), charts.scatter(*pairs.T, ("score", "other score"))]
    write_page(path, a_page(figures=FIGURES, remarks=["split: authors"], charts=drawn), photos)
    return path, photos


def test_every_order(reader, shown):
    path, photos = shown
    reader.open(path)
    values = {
        "score": lambda p: p.score,
        "other": lambda p: p.other,
        "difference": lambda p: None if p.other is None else abs(p.score - p.other),
        "below": lambda p: p.numbers["below"],
        "spread": lambda p: p.numbers["spread"],
    }
    offered = reader.do("return [...document.getElementById('sort').options].map(o => o.value)")
    assert set(offered) == {"name", *values}
    good, bad = photos[2:], [photo.image for photo in photos[:2]]
    for key, value in values.items():
        reader.set("sort", key)
        known = [p for p in good if value(p) is not None]
        rest = [p.image for p in good if value(p) is None] + bad
        for direction in ("-1", "1"):
            reader.set("direction", direction)
            ordered = sorted(known, key=lambda p: int(direction) * value(p))
            assert reader.names() == [p.image for p in ordered] + rest
    reader.set("sort", "name")
    assert reader.names() == [p.image for p in good] + bad  # photo 2 before photo 10
    assert reader.complaints() == []


def test_filters_and_their_count(reader, shown):
    path, photos = shown
    reader.open(path)
    scores = [photo.score for photo in photos[2:]]
    assert reader.count() == "40 of 40 photographs"
    assert reader.one("#count").get_attribute("aria-live") == "polite"
    reader.set("text", "PHOTO 1")
    assert reader.count() == "10 of 40 photographs"
    reader.set("text", "</script>")
    assert reader.names() == [ODD]
    reader.set("text", "")
    reader.set("low", "4")
    reader.set("high", "6.5")
    within = sum(4 <= score <= 6.5 for score in scores)
    assert 0 < within < 38
    assert reader.count() == f"{within} of 40 photographs"
    reader.follow("document.getElementById('clear').click()")
    for choice, number in (("only", 2), ("without", 38), ("all", 40)):
        reader.set("errors", choice)
        assert reader.count() == f"{number} of 40 photographs"
    reader.set("text", "nobody's")
    assert (reader.count(), reader.names()) == ("0 of 40 photographs", [])
    assert reader.complaints() == []


def test_the_keyboard_alone(reader, shown):
    path, _ = shown
    reader.open(path)
    names = reader.names()
    columns = len(
        reader.do("return getComputedStyle(document.getElementById('gallery')).gridTemplateColumns").split()
    )
    reader.press("TAB")
    assert reader.focused() == "skip"
    reader.press("ENTER", "TAB")
    reader.do("document.getElementById('clear').focus()")
    reader.press("TAB")
    assert reader.focused() == names[0]
    moves = {"ARROW_RIGHT": 1, "ARROW_DOWN": 1 + columns, "ARROW_LEFT": columns, "ARROW_UP": 0}
    for key, place in moves.items():
        reader.press(key)
        assert reader.focused() == names[place]
    reader.press("ARROW_LEFT", "END")
    assert reader.focused() == names[-1]
    reader.press("HOME", "ENTER")
    assert reader.one("#viewer-title").text == names[0]
    reader.press("ARROW_LEFT", "ARROW_RIGHT", "ARROW_RIGHT")
    assert reader.one("#viewer-title").text == names[2]
    assert reader.one("#place").text == "3 of 40"
    reader.press("ESCAPE")
    assert not reader.do("return document.getElementById('viewer').open")
    assert reader.focused() == names[2]
    assert len(reader.all('.card[tabindex="0"]')) == 1
    assert reader.complaints() == []


def opacity(selector):
    return f"Number(getComputedStyle(document.querySelector('{selector}')).opacity)"


@pytest.mark.parametrize("how", ["hover", "focus"])
def test_attention_and_votes_show(reader, shown, how):
    from selenium.webdriver import ActionChains

    reader.open(shown[0])
    second = "#gallery > li:nth-child(2) "
    card = reader.one(second + ".card")
    reader.do("document.activeElement.blur(); arguments[0].scrollIntoView({block: 'center'})", card)
    reader.until(f"document.querySelector('{second}.votes')")
    assert reader.all(".card canvas") == []
    assert reader.do(f"return {opacity(second + '.votes')}") < 0.5
    if how == "hover":
        ActionChains(reader.driver).move_to_element(card).perform()
    else:
        reader.do("document.querySelector('.card').focus()")
        reader.press("ARROW_RIGHT")
        assert "5: 30 %" in card.get_attribute("aria-description")
    for what in ("canvas", ".votes"):
        reader.until(f"{opacity(second + what)} === 1")
    picture, attention = (reader.one(second + what).rect for what in ("img", "canvas"))
    assert picture == attention  # over all of the picture, whatever its shape
    assert reader.complaints() == []


def test_attention_on_all(reader, shown):
    reader.open(shown[0])
    reader.one("#everywhere").click()
    reader.until("document.querySelectorAll('.card canvas').length > 4")
    reader.do("window.scrollTo(0, document.body.scrollHeight)")
    reader.until(
        f"document.querySelectorAll('.card canvas').length === 38 && {opacity('#gallery > li:nth-child(38) canvas')} === 1"
    )
    assert "times an even share" in reader.one("#legend").text


def test_one_photograph_in_large(reader, shown):
    _, photos = shown
    reader.open(shown[0])
    best = max(photos[2:], key=lambda photo: photo.score)
    reader.one(".card").click()
    reader.until("document.querySelector('#viewed img').complete")
    text = reader.one("#viewed").text
    assert f"Score\n{best.score:.2f}" in text
    assert f"Other score\n{best.other:.2f}" in text
    assert reader.one("#viewed img").get_attribute("alt") == best.image
    label = reader.one("#viewed svg").get_attribute("aria-label")
    assert label.startswith("Votes, score: 1: 0 %, 2: 1 %, 3: 2 %, 4: 10 %, 5: 30 %")
    assert "Votes, other score: 1: −1 %" in label
    assert len(reader.all("#viewed svg .bar")) == 20
    assert reader.one("#viewed a").get_attribute("href") == best.path.as_uri()
    reader.one("#viewed input").click()
    assert reader.one("#viewed canvas").is_displayed()
    reader.one("#close").click()
    assert reader.focused() == best.image
    assert reader.complaints() == []


def test_charts_are_drawn(reader, shown):
    reader.open(shown[0], anew=False)
    titles = [element.text for element in reader.all("#overview h3")]
    assert titles[-2:] == ["Distribution of scores", "The score against the other score"]
    for chart in reader.all("#overview img.chart"):
        assert "photographs" in chart.get_attribute("alt")
        assert reader.do("return arguments[0].naturalWidth", chart) > 0


def test_every_control_has_a_name_and_the_page_its_landmarks(reader, shown):
    reader.open(shown[0], anew=False)
    nameless = reader.do(
        "return [...document.querySelectorAll('button, input, select, a')].filter(e => !(e.labels?.length || "
        "e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert nameless == []
    assert [len(reader.all(tag)) for tag in ("main", "header", "h1", "[role=search]")] == [1] * 4
    assert reader.one("html").get_attribute("lang") == "en"


CONTRAST = """
const [foreground, background] = arguments;
const parse = (value) => value.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const light = (name) => { document.body.style.color = `var(--${name})`; const [r, g, b] = parse(getComputedStyle(document.body).color); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const [a, b] = [light(foreground), light(background)].sort((x, y) => y - x);
return (a + 0.05) / (b + 0.05);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_are_legible(reader, shown, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        reader.open(shown[0], anew=False)
        ground = reader.do("return getComputedStyle(document.body).backgroundColor")
        assert (int(re.search(r"\d+", ground)[0]) > 128) == (scheme == "light")
        for name in ("ink", "muted", "first", "second", "bad"):
            for behind in ("ground", "panel", "mat") if name != "bad" else ("panel",):
                assert reader.do(CONTRAST, name, behind) >= 4.5, (scheme, name, behind)
        assert reader.do(CONTRAST, "edge", "ground") >= 3  # the rim of controls
        chart = reader.one("#overview img.chart")
        grey = Image.open(io.BytesIO(chart.screenshot_as_png)).convert("L")
        ground, bars = np.argsort(grey.histogram())[:-3:-1]
        assert abs(ground - bars) > 120
        assert (ground > 128) == (scheme == "light")
    finally:
        reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width", [320, 2400])
def test_narrow_and_wide_screens(reader, shown, width):
    with reader.screen(width):
        reader.open(shown[0], anew=False)
        assert reader.do("return innerWidth") == width
        assert reader.do("return document.documentElement.scrollWidth") <= width
        columns = reader.do("return getComputedStyle(document.getElementById('gallery')).gridTemplateColumns")
        assert len(columns.split()) == {320: 2, 2400: 7}[width]
        reader.do("document.querySelector('.card').click()")
        assert reader.do("return document.getElementById('viewer').scrollWidth") <= width


def test_names_begin_below_their_folder_the_filter_has_the_real_range_and_a_phone_no_keys(reader, tmp_path):
    photos = [
        Photo(f"/home/me/photos/{name}.jpg", None, score) for name, score in (("a/x", 2.5), ("ab", 7.25))
    ]
    write_page(tmp_path / "page.html", a_page(), photos)
    reader.open(tmp_path / "page.html")
    assert [name.text for name in reader.all(".about > .name:first-child")] == ["ab.jpg", "a/x.jpg"]
    assert "Folder\n/home/me/photos/" in reader.one("#overview").text
    assert [reader.one(f"#{name}").get_attribute("placeholder") for name in ("low", "high")] == [
        "2.50",
        "7.25",
    ]
    assert "Arrow keys" in reader.one("#hint").text
    with reader.screen(320):
        assert reader.one("#hint").text == ""


@pytest.mark.parametrize("kind", ["empty", "errors", "single", "plain", "equal"])
def test_odd_pages_open(reader, tmp_path, kind):
    photos = {
        "empty": [],
        "errors": [Photo("a.jpg", None, None, error="cut short")],
        "single": [Photo("a.jpg", None, 5.0, votes=[0.0] * 10, other=5.0)],
        "plain": [Photo(f"{n}.jpg", None, float(n)) for n in range(4)],
        "equal": [Photo(f"{n}.jpg", None, 5.0, other=5.0) for n in range(4)],
    }[kind]
    write_page(tmp_path / "page.html", a_page(), photos)
    reader.open(tmp_path / "page.html")
    assert reader.count() == f"{len(photos)} of {len(photos)} photographs"
    if photos:
        reader.one(".card").click()
        assert reader.one("#viewer-title").is_displayed()
    assert reader.complaints() == []


def test_evals_page_opens(reader, ava, run):
    assert evaluate(run, ava)[0] == 0
    reader.open(ava / "e" / "report.html")
    assert reader.one("#overview td.large").text != ""
    reader.one(".card").click()
    assert reader.one("#viewed svg").get_attribute("aria-label").startswith("Votes, predicted score: 1: ")
    assert reader.complaints() == []


def test_a_thousand_photographs(reader, tmp_path):
    make_pictures(tmp_path, ["wide.jpg", "tall.png"], size=(64, 96))
    photos, path = many(tmp_path, 1000), tmp_path / "large.html"
    write_page(path, a_page(), photos)
    start = time.perf_counter()
    reader.open(path)
    assert len(reader.names()) == 1000
    reader.set("sort", "spread")
    assert reader.names()[0] == max(photos[2:], key=lambda p: p.numbers["spread"]).image
    assert time.perf_counter() - start < 15
    assert len(reader.all(".card img")) < 250  # the others wait until they come near
    reader.do("document.querySelector('.card').focus()")
    reader.press("END")
    reader.until("document.activeElement.getBoundingClientRect().bottom <= innerHeight")
    reader.until("document.querySelector('#gallery > li:nth-last-child(3) img') !== null")
    assert reader.complaints() == []
