"""The HTML report in a browser: from disk, without a network, with a hostile summary in it."""

import os
import shutil

import numpy as np
import pytest
from matplotlib import pyplot as plt
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from dera_jax import report
from dera_jax.evaluation import report_content
from dera_jax.evaluation.report_content import OutputSource, ReportContent, ReportTable
from tests.report import folders
from tests.report.folders import HOSTILE


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = folders.write_sweep(tmp_path_factory.mktemp("a report"), samples=1)
    folders.write_sweep(folder / "other", documents=2, samples=1)
    plt.imsave(folder / "figure.png", np.zeros((4, 4)))
    table = ReportTable("Means", [["λ", "gap"], ["0.5", HOSTILE]])
    sources = [OutputSource("DeRa", "."), OutputSource("retrained", "other")]
    content = ReportContent("λ & <length>", [table], ["1 < 2", HOSTILE], sources)
    report_content.conclude(content, folder)
    return report.write(folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("CI"):
            pytest.fail("CI must have Debian's chromium and chromium-driver")
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless",
        "--no-sandbox",  # as root there is none
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, path):
    browser.get(path.as_uri())
    return browser


def text(page, name: str) -> str:
    return page.find_element(By.ID, name).text


def test_it_opens_from_disk_without_an_error_or_a_request(page):
    assert page.title == "λ & <length>"
    assert page.get_log("browser") == []
    requests = [
        x["message"] for x in page.get_log("performance") if 'requestWillBeSent"' in x["message"]
    ]
    assert requests and not any('"url":"http' in message for message in requests)
    image = page.find_element(By.TAG_NAME, "img")
    assert page.execute_script("return arguments[0].naturalWidth", image) == 4


def outputs(page, name: str) -> list[str]:
    """The heading, text and note of the outputs on one side."""
    section = page.find_element(By.ID, name)
    return section.text.split("\n")


def select(page, label: str) -> None:
    Select(page.find_element(By.ID, "source")).select_by_visible_text(label)


def test_the_page_begins_with_the_last_source_and_the_aligned_model_or_the_largest_lambda(page):
    assert outputs(page, "baseline")[0] == "DeRa, λ = 0 (reference)"
    assert outputs(page, "selected")[0] == "retrained, λ = 2"


def test_the_slider_moves_lambda(page):
    select(page, "DeRa")
    slider = page.find_element(By.ID, "lam")
    slider.send_keys(Keys.HOME)
    seen = []
    for key in ("", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT):
        slider.send_keys(key)
        seen.append([text(page, "value"), *outputs(page, "selected")])
    notes = ["reward -1.00 · 5 tokens · KL 0.00 nats", "reward 0.00 · 5 tokens · KL 0.67 nats"]
    assert seen[0] == ["0", "DeRa, λ = 0 (reference)", "text 0 at 0 0", notes[0]]
    assert seen[1][:3] == ["0.5", "DeRa, λ = 0.5", f"{HOSTILE} 0"]
    cut = f"{notes[1]} · truncated at the length limit"
    assert seen[2] == seen[3] == ["2", "DeRa, λ = 2", "text 0 at 2 0", cut]
    assert outputs(page, "baseline") == ["DeRa, λ = 0 (reference)", "text 0 at 0 0", notes[0]]


def test_the_selector_changes_the_method_and_keeps_lambda(page):
    page.find_element(By.ID, "lam").send_keys(Keys.ARROW_LEFT)
    select(page, "DeRa")
    assert outputs(page, "selected")[0] == "DeRa, λ = 0.5"
    select(page, "retrained")
    assert outputs(page, "selected")[0] == "retrained, λ = 0.5"
    page.find_element(
        By.ID, "previous"
    ).click()  # document 2, which the second folder does not have
    assert outputs(page, "selected")[1] == "no output of this document"


def test_the_documents_can_be_leafed_through(page):
    page.find_element(By.ID, "previous").click()
    assert (text(page, "place"), text(page, "human")) == ("3 of 3", "human 2")
    page.find_element(By.ID, "next").click()
    page.find_element(By.ID, "next").click()
    assert (text(page, "place"), text(page, "document")) == ("2 of 3", "<i>document</i> 1")


def test_texts_of_a_model_are_shown_and_never_run(page):
    page.find_element(By.ID, "lam").send_keys(Keys.ARROW_LEFT)
    assert outputs(page, "selected")[1] == f"{HOSTILE} 0"
    assert page.title == "λ & <length>"
    assert not page.find_elements(By.TAG_NAME, "b") and not page.find_elements(By.TAG_NAME, "i")
    assert HOSTILE in [item.text for item in page.find_elements(By.TAG_NAME, "li")]
    assert HOSTILE in [cell.text for cell in page.find_elements(By.TAG_NAME, "td")]


@pytest.mark.parametrize("width", [1200, 400])
def test_nothing_is_wider_than_the_window(page, width):
    """Wide tables scroll in their own box."""
    page.set_window_size(width, 900)
    widths = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]
