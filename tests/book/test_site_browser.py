"""The built site in a browser: weight, contrast, narrow screens, keyboard, search, paper, wrong addresses.

`open_page` also checks, for each page, that the console shows no error and that nothing left localhost.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.browser

PAGE_LIMIT = 1_500_000
LATER = ("/_static/pyodide/", "/_static/plotly.min.js", "/_static/live/worker.js", "/_static/live/lmlib.zip")

# Text whose contrast with what lies behind it is below 4.5 (3 for large text), as WCAG 2 counts it.
TOO_FAINT = """() => {
  const parse = text => {
    const [r, g, b, alpha = 1] = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [r * scale, g * scale, b * scale, alpha];
  };
  const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => .2126 * linear(c[0]) + .7152 * linear(c[1]) + .0722 * linear(c[2]);
  const over = (top, under) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * under[i]).concat(1);
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const faint = new Map();
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (element.closest("mjx-assistive-mml, [disabled], .lm-stale, .headerlink, .copybtn, svg")) continue;
    const style = getComputedStyle(element), behind = ground(element);
    const a = light(over(parse(style.color), behind)), b = light(behind);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5))
      faint.set(`${element.tagName}.${element.className}`, [ratio, element.textContent.trim().slice(0, 40)]);
  }
  return Object.fromEntries(faint);
}"""


def addresses(site: Path) -> list[str]:
    """Every page of the book itself."""
    found = [
        f"/{path.relative_to(site)}"
        for folder in ("book", "chapters")
        for path in sorted((site / folder).glob("*.html"))
    ]
    assert len(found) > 7
    return found


def test_every_page_is_light_before_anything_comes_into_view(
    open_page: Callable[..., Any], built_site: Path
) -> None:
    for address in addresses(built_site):
        page = open_page(viewport={"width": 1280, "height": 800})
        weights: dict[str, int] = {}
        page.on("response", lambda r, w=weights: w.update({r.url: int(r.headers.get("content-length", 0))}))
        page.goto(address, wait_until="load")
        page.wait_for_timeout(300)
        weight = sum(size for url, size in weights.items() if not urlsplit(url).path.startswith(LATER))
        assert len(weights) > 10
        assert 100_000 < weight < PAGE_LIMIT, (address, weight)
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(
    open_page: Callable[..., Any], built_site: Path, scheme: str
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    for address in addresses(built_site):
        page.goto(address)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        # Colours that fade in are judged once they are there.
        page.evaluate("Promise.allSettled(document.getAnimations().map(each => each.finished)).then(() => 0)")
        assert page.evaluate(TOO_FAINT) == {}, address


def test_the_button_changes_the_colours_and_they_stay(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/notation.html", color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator(".theme-switch-button").first.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(ground) != light
    page.goto("/book/glossary.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("width", [320, 360, 768, 1024])
def test_no_page_scrolls_sideways(open_page: Callable[..., Any], built_site: Path, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 700})
    for address in [*addresses(built_site), "/search.html", "/404.html"]:
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (address, width)


def test_the_menu_opens_on_a_phone(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/notation.html", viewport={"width": 360, "height": 700})
    assert not page.get_by_role("link", name="Glossary").first.is_visible()
    page.locator(".primary-toggle:visible").first.click()
    page.get_by_role("link", name="Glossary").first.click()
    page.wait_for_url("**/glossary.html")


def test_search_finds_a_word_and_its_page(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/notation.html")
    page.keyboard.press("Control+k")
    page.locator("#pst-search-dialog input[name=q]").fill("surrogate")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=surrogate*")
    result = page.locator("#search-results li a").first
    result.wait_for()
    assert "Glossary" in page.locator("#search-results").inner_text()


def test_a_term_shows_its_definition_to_the_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/index.html")
    term = page.locator("a:has(> .std-term)", has_text="byte-pair encoding")
    term.focus()
    tip = page.get_by_role("tooltip")
    assert "most frequent pair" in tip.inner_text()
    assert term.get_attribute("aria-describedby") == tip.get_attribute("id")
    page.keyboard.press("Escape")
    assert tip.count() == 0
    term.hover()
    assert "most frequent pair" in tip.inner_text()


def test_a_terms_definition_stays_on_a_narrow_screen(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/notation.html", viewport={"width": 320, "height": 600})
    page.locator("a:has(> .std-term)").last.focus()
    box = page.get_by_role("tooltip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 320


def test_the_first_stop_of_the_keyboard_skips_the_menu(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/notation.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
    page.keyboard.press("Tab")
    ring = "getComputedStyle(document.activeElement).outline"
    assert "solid 3px" in page.evaluate(ring)


def test_everything_reads_without_javascript(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/index.html", java_script_enabled=False)
    widget = page.locator("lm-widget").first
    assert "Tokens" in widget.inner_text()
    assert (
        page.locator(".theme-switch-button").count() == 0
        or not page.locator(".theme-switch-button").first.is_visible()
    )


def test_formulas_are_set_with_the_books_own_fonts(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/notation.html")
    page.wait_for_function("document.fonts.status === 'loaded'")
    assert page.locator("mjx-container").count() > 20
    assert page.evaluate(
        "[...document.fonts].some(f => f.family.startsWith('MJXTEX') && f.status === 'loaded')"
    )
    assert page.locator("mjx-assistive-mml math").count() == page.locator("mjx-container").count()


def test_paper_shows_the_text_alone(open_page: Callable[..., Any]) -> None:
    page = open_page("/book/index.html", color_scheme="dark", viewport={"width": 794, "height": 1100})
    page.emulate_media(media="print")
    for hidden in (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", ".headerlink"):
        assert not page.locator(hidden).first.is_visible(), hidden
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.bd-article p')).color") == "rgb(0, 0, 0)"
    assert page.locator("lm-widget").first.is_visible()


def test_a_wrong_address_leads_back_from_any_depth(open_page: Callable[..., Any]) -> None:
    page = open_page()
    answer = page.goto("/chapters/no/such/page.html")
    assert answer.status == 404
    page.wait_for_function("document.getElementById('home').href.endsWith('/book/index.html')")
    assert "/chapters/no/such/page.html" in page.locator("main").inner_text()
    page.locator("#home").click()
    page.wait_for_url("**/book/index.html")
    assert page.locator("h1").inner_text().startswith("Language Models, Live")
    # The wrong address itself, and the folders that were asked for the root, are logged, sooner or later.
    page.console_errors[:] = [error for error in page.console_errors if "(Not Found)" not in error]
