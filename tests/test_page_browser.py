"""The page in a real browser, Chromium: nothing fails or is fetched, all is drawn, legible and within reach."""

import shutil

import pytest

from tests.report_pages import made

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `dev`")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("page"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `apt-get install chromium` brings one"),
]

# The contrast of every text with the nearest ground that is painted behind it, where it is too low.
FAINT = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [red, green, blue] = parts(colour).map((each) => each / 255)
      .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const text = node.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("svg, script, style, noscript, select")) continue;
    const pair = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) found.add(`${element.outerHTML.slice(0, 60)}: ${text}`);
  }
  return [...found];
}"""
# Pairs of labels of an axis that touch or overlap.
TOUCHING = """() => [...document.querySelectorAll("[data-drawn] svg .role-axis-label")].flatMap((axis) => {
  const shown = [...axis.querySelectorAll("text")]
    .filter((each) => each.textContent && Number(getComputedStyle(each).opacity) > 0);
  const across = (a, b) => Math.max(a.left, b.left) - Math.min(a.right, b.right);
  const down = (a, b) => Math.max(a.top, b.top) - Math.min(a.bottom, b.bottom);
  return shown.flatMap((each, place) => shown.slice(place + 1)
    .filter((other) => {
      const boxes = [each.getBoundingClientRect(), other.getBoundingClientRect()];
      return across(...boxes) < 3 && down(...boxes) < 0;
    })
    .map((other) => `${each.textContent} and ${other.textContent}`));
})"""
REACHABLE = "a[href], button, input, select, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(made()[1], encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page; what the browser says of it and asks for is noted, and neither may be anything."""
    said, asked, contexts = [], [], []

    def look(width=1280, **settings):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        if settings.get("java_script_enabled", True):
            charts = page.locator("[data-chart]").count()
            page.wait_for_function(f"document.querySelectorAll('[data-drawn]').length === {charts}")
        return page

    yield look
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if url != address and not url.startswith("data:")] == []


def test_every_chart_is_drawn_and_every_picture_is_there(opened):
    page = opened()
    assert page.locator("[data-drawn] svg").count() == page.locator("[data-chart]").count() == 5
    assert page.evaluate("[...document.images].filter((each) => !each.naturalWidth).length") == 0
    assert page.locator(".pair img").count() == 2


def test_a_method_is_switched_off_and_on(opened):
    page = opened()
    chart = page.locator('[data-chart="figure-spectra"]')
    lines = chart.locator("svg .mark-line path")
    before = lines.count()
    chart.get_by_label("whitening", exact=True).uncheck()
    page.wait_for_function(
        f"document.querySelectorAll('[data-chart=figure-spectra] svg .mark-line path').length < {before}"
    )
    chart.get_by_label("whitening", exact=True).check()
    page.wait_for_function(
        f"document.querySelectorAll('[data-chart=figure-spectra] svg .mark-line path').length == {before}"
    )


def test_two_methods_stand_side_by_side(opened):
    page = opened()
    chosen = page.locator(".pair select").first
    before = page.locator(".pair img").first.get_attribute("src")
    chosen.select_option("held-out images")
    assert page.locator(".pair img").first.get_attribute("src") != before
    assert page.locator(".pair img").first.get_attribute("alt") == "Samples: held-out images"


@pytest.mark.parametrize("scripts", [True, False])
def test_a_telephone_never_scrolls_sideways(opened, scripts):
    page = opened(width=390, java_script_enabled=scripts)
    page.locator("details").evaluate_all("(all) => all.forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_labels_of_axes_stand_apart_on_a_telephone(opened):
    page = opened(width=390)
    assert page.locator("[data-drawn] svg .role-axis-label text").count() > 20
    assert page.evaluate(TOUCHING) == []
    page.get_by_role("radio", name="training FLOPs").check()
    page.wait_for_function(
        "[...document.querySelectorAll('[data-chart=figure-metrics_vs_steps] svg .role-axis-label text')]"
        ".some((each) => each.textContent.endsWith('T'))"
    )
    assert page.evaluate(TOUCHING) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(opened, scheme):
    page = opened(color_scheme=scheme)
    page.locator("details").evaluate_all("(all) => all.forEach((each) => { each.open = true; })")
    assert page.evaluate(FAINT) == []


def test_the_keyboard_reaches_everything_in_order(opened):
    page = opened()
    wanted = page.locator(REACHABLE).evaluate_all(
        "(all) => all.filter((each) => each.checkVisibility())"
        ".map((each, place) => { each.dataset.place = place; return place; })"
    )
    met = []
    for _ in range(2 * len(wanted)):
        page.keyboard.press("Tab")
        place = page.evaluate("document.activeElement.dataset.place")
        if place is None:  # past the end
            break
        met.append(int(place))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    radios = page.locator("input[type=radio]:not(:checked)").evaluate_all(
        "(all) => all.map((each) => +each.dataset.place)"
    )
    assert met == [
        place for place in wanted if place not in radios
    ]  # of radio buttons one is met, arrows do the rest


def test_a_row_tells_where_its_numbers_come_from(opened):
    page = opened()
    row = page.locator('button[data-table="sides"]').first
    row.focus()
    page.keyboard.press("Enter")
    said = page.locator("dialog").inner_text()
    assert "precfm why results/quick/tables/sides.csv:" in said
    assert "evaluations" in said
    assert "make reproduce EXPERIMENT=quick" in said
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.dataset.table") == "sides"


def test_a_claim_leads_to_its_evidence(opened):
    page = opened()
    page.locator('.claims a[href="#claim-C8a"]').click()
    page.locator("#claim-C8a").wait_for(state="visible")


def test_without_scripts_it_is_a_static_page(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("[data-chart]:visible").count() == 0
    assert page.locator("figure img:visible").count() == page.locator("figure img").count() > 3
    assert page.locator("#table-sides td:visible").count() > 10
    assert page.locator("noscript").first.is_visible()


def test_a_print_shows_static_figures_and_what_is_folded(opened):
    page = opened()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("[data-chart]:visible, nav:visible, .pair:visible").count() == 0
    assert page.locator("figure img:visible").count() == page.locator("figure img").count()
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
