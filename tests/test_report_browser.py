# SPDX-License-Identifier: Apache-2.0
"""The report in headless Chromium: it opens, asks for nothing outside, and works with and without scripts."""

from __future__ import annotations

import pytest
from browser import browser  # noqa: F401
from report_runs import write_run

from monai_cnnprimer.report.validation import write_report

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    folders = [write_run(root / "home", n=100, signal=2.6, maps=4), write_run(root / "away", n=80, maps=4)]
    folders.append(write_run(root / "tuned", n=60, retuned=True))
    return write_report(folders, root / "report.html", internal="home").path.as_uri()


def column(browser, place):  # noqa: F811
    rows = "[...document.querySelector('table.sorted').tBodies[0].rows]"
    return browser.script(f"return {rows}.map(row => row.cells[{place}].textContent.trim())")


def test_opens_without_an_error_and_asks_for_nothing_outside(browser, address):  # noqa: F811
    browser.open(address)
    assert browser.errors() == []
    assert browser.requests() == [address]
    assert browser.script("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_tables_sort_by_number_and_back(browser, address):  # noqa: F811
    browser.open(address)
    assert column(browser, 0) == ["home", "away", "tuned"]
    heads = browser.driver.find_elements("css selector", "table.sorted th button")
    cases = next(head for head in heads if head.text.startswith("cases"))
    cases.click()
    assert column(browser, 0) == ["tuned", "away", "home"]
    cases.click()
    assert column(browser, 0) == ["home", "away", "tuned"]


def test_contents_lead_to_their_sections(browser, address):  # noqa: F811
    browser.open(address)
    browser.driver.find_element("css selector", "nav a[href='#gallery']").click()
    top = browser.script("return document.getElementById('gallery').getBoundingClientRect().top")
    assert 0 <= top < 120  # below the banner, which stays


def test_colours_follow_the_system_and_the_button(browser, address):  # noqa: F811
    def shade():
        return browser.script("return getComputedStyle(document.body).backgroundColor")

    browser.open(address)
    light = shade()
    browser.open(address, dark=True)
    dark = shade()
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(22, 25, 29)")
    button = browser.driver.find_element("id", "theme")
    assert button.text == "Light page"
    button.click()
    assert (shade(), button.text) == (light, "Dark page")


@pytest.mark.parametrize("width", [360, 400, 800, 1200])
def test_no_width_makes_the_page_wider_than_its_window(browser, address, width):  # noqa: F811
    browser.open(address, width=width)
    assert browser.script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_their_background(browser, address, dark):  # noqa: F811
    """WCAG 2.2, 1.4.3: a contrast of 4.5 at least, for each colour of the page on the page's background."""
    browser.open(address, dark=dark)
    contrasts = browser.script(
        """
        const light = value => {
          const c = value / 255;
          return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        };
        const probe = document.createElement('p'); document.body.append(probe);
        const luminance = colour => {
          probe.style.color = colour;
          const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(Number).map(light);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const back = luminance('var(--back)');
        const names = ['text', 'soft', 'link', 'good', 'bad', 'open'];
        const found = Object.fromEntries(names.map(name => [name, contrast(luminance(`var(--${name})`), back)]));
        found.warn = contrast(luminance('var(--warn-text)'), luminance('var(--warn-back)'));
        return found;
        """
    )
    assert min(contrasts.values()) >= 4.5, contrasts


def test_without_scripts_everything_is_there_but_the_buttons(browser, address):  # noqa: F811
    browser.without_scripts()
    try:
        browser.open(address)
        assert browser.driver.find_elements("css selector", "th button") == []
        assert not browser.driver.find_element("id", "theme").is_displayed()
        assert len(browser.driver.find_elements("css selector", "figure svg")) >= 7
    finally:
        browser.without_scripts(off=False)


def test_works_in_a_sandboxed_frame_as_mlflow_shows_it(browser, address, tmp_path):  # noqa: F811
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe sandbox="allow-scripts" src="{address}" width="900" height="700"></iframe>')
    browser.open(frame.as_uri())
    assert browser.errors() == []
    browser.driver.switch_to.frame(0)
    browser.driver.find_element("id", "theme").click()
    assert browser.driver.find_element("id", "theme").text == "Light page"
    browser.driver.switch_to.default_content()


def test_prints_in_light_colours_with_folded_parts_open(browser, address, tmp_path):  # noqa: F811
    browser.open(address, dark=True)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.pdf(tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
