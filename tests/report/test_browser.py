"""The HTML report in a browser: from disk, without a network, with a hostile summary in it."""

import os
import shutil

import numpy as np
import pytest
from matplotlib import pyplot as plt
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from dera_jax.experiments import report

HOSTILE = "</script><script>document.title = 'owned'</script><b>bold</b> & \"quoted\" ${name}"
LAMS = (0.0, 0.5, 2.0)


def record(i: int) -> dict:
    texts = {0.0: f"the reference says {i}", 0.5: HOSTILE, 2.0: "longer " * 4 + str(i)}
    samples = [
        {"lam": lam, "text": texts[lam], "reward": -1.0 if lam < 2 else 0.0, "length": n, "kl": 0.1}
        for n, lam in enumerate(LAMS, start=3)
    ]
    return {"document": f"<i>document</i> {i}", "summary": f"human {i}", "samples": samples * 2}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a report")
    plt.imsave(folder / "figure.png", np.zeros((4, 4)))
    report.write(
        folder / "report.html",
        title="λ & <length>",
        facts=["1 < 2", HOSTILE],
        figures=[folder / "figure.png"],
        rows=[{"lam": 0.5, "gap_reward": -0.0123}, {"lam": 2.0, "gap_reward": HOSTILE}],
        records=[record(i) for i in range(3)],
    )
    return folder / "report.html"


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


def test_the_slider_moves_lambda(page):
    slider = page.find_element(By.ID, "lam")
    seen = []
    for key in ("", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT):
        slider.send_keys(key)
        seen.append([text(page, name) for name in ("value", "realigned", "reward", "length")])
    assert seen[0] == ["0", "the reference says 0", "-1", "3 tokens"]
    assert seen[1] == ["0.5", HOSTILE, "-1", "4 tokens"]
    assert seen[2] == seen[3] == ["2", "longer longer longer longer 0", "0", "5 tokens"]
    assert text(page, "reference") == "the reference says 0"


def test_the_documents_can_be_leafed_through(page):
    page.find_element(By.ID, "previous").click()
    assert (text(page, "place"), text(page, "summary")) == ("3 of 3", "human 2")
    page.find_element(By.ID, "next").click()
    page.find_element(By.ID, "next").click()
    assert (text(page, "place"), text(page, "document")) == ("2 of 3", "<i>document</i> 1")


def test_texts_of_a_model_are_shown_and_never_run(page):
    page.find_element(By.ID, "lam").send_keys(Keys.ARROW_RIGHT)
    assert text(page, "realigned") == HOSTILE
    assert page.title == "λ & <length>"
    assert not page.find_elements(By.TAG_NAME, "b") and not page.find_elements(By.TAG_NAME, "i")
    assert HOSTILE in [item.text for item in page.find_elements(By.TAG_NAME, "li")]
    assert HOSTILE in [cell.text for cell in page.find_elements(By.TAG_NAME, "td")]
