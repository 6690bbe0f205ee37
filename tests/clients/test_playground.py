"""The page for browsers, in a real one: each task of each model is clicked through."""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.support.browser import chromium
from tests.support.configs import tiny_config
from tests.support.gliner_models import gliner, save_gliner
from tests.support.parity import cosines
from tests.support.prefix_proxy import below
from tests.support.servers import serving
from tests.support.task_models import classifier

SECONDS = 60
EMBEDDER, RERANKER = "sentence-transformers/all-MiniLM-L6-v2", "small-reranker"
TASKS = {
    EMBEDDER: ["Embeddings", "Tokens"],
    RERANKER: ["Rerank", "Tokens"],
    "small-classifier": ["Classify", "Tokens"],
    "small-pii": ["Entities", "Tokens"],
    "small-splade": ["Sparse", "Tokens"],
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def page(browser, server_of_all) -> Any:
    return opened(browser, f"{server_of_all}/docs")


def opened(browser: Any, url: str) -> Any:
    browser.set_window_size(1100, 1000)
    browser.get("about:blank")
    browser.get_log("browser")  # an earlier test's: reading the log empties it
    browser.get(url)
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#routes details"))
    return browser


def until(browser: Any, condition: Any) -> Any:
    """The first true value of `condition`; elements may be replaced meanwhile."""
    waiting = WebDriverWait(browser, SECONDS, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(lambda _: condition())


def choose(page: Any, model: str) -> list[WebElement]:
    """The sections of a model's tasks."""
    Select(page.find_element(By.ID, "model")).select_by_value(model)
    until(page, lambda: page.find_element(By.ID, "about").text.startswith(model))
    return page.find_elements(By.CSS_SELECTOR, "#tasks section")


def name_of(section: WebElement) -> str:
    return section.find_element(By.TAG_NAME, "h2").text


def answered(page: Any, section: WebElement) -> WebElement:
    """The output of a section, once it is there."""
    output = section.find_element(By.CSS_SELECTOR, "[aria-live]")
    until(page, lambda: output.find_elements(By.CSS_SELECTOR, ".row, .error"))
    assert output.find_elements(By.CSS_SELECTOR, ".error") == [], output.text
    return output


def example(page: Any, section: WebElement) -> WebElement:
    section.find_element(By.CSS_SELECTOR, "form button.plain").click()
    return answered(page, section)


def task(page: Any, model: str, name: str) -> WebElement:
    return next(section for section in choose(page, model) if name_of(section) == name)


def bars(output: WebElement) -> list[tuple[str, float]]:
    rows = [row.text.rsplit(maxsplit=1) for row in output.find_elements(By.CSS_SELECTOR, ".bars tbody tr")]
    return [(name, float(value)) for name, value in rows]


def tell(capsys: pytest.CaptureFixture, text: str) -> None:
    """A line for whoever runs this file."""
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def assert_nothing_was_logged(page: Any) -> None:
    assert page.get_log("browser") == []


@pytest.mark.parametrize("model", TASKS)
def test_every_task_of_a_model_answers_its_examples(page, model, tmp_path, capsys):
    sections = choose(page, model)
    assert [name_of(section) for section in sections] == TASKS[model]
    for section in sections:
        example(page, section)
    picture = tmp_path / "page.png"
    page.set_window_size(1100, 2400)
    assert page.save_screenshot(str(picture))
    tell(capsys, f"{model}: {picture}")
    assert_nothing_was_logged(page)


def test_cosines_and_the_map_are_those_of_the_vectors(page, server_of_all):
    section = task(page, EMBEDDER, "Embeddings")
    texts = ["A goal in the last minute.", "The goalkeeper was late.", "Interest rates rose."]
    area = section.find_element(By.TAG_NAME, "textarea")
    area.send_keys("\n".join(texts))
    section.find_element(By.CSS_SELECTOR, "button.run").click()
    output = answered(page, section)
    vectors = np.array(httpx.post(f"{server_of_all}/embed", json={"inputs": texts}).json())
    shown = [[float(cell.text) for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows_of(output, ".heat")]
    np.testing.assert_allclose(shown, vectors @ vectors.T, atol=0.006)
    points = [
        [float(circle.get_attribute(axis)) for axis in ("cx", "cy")]
        for circle in output.find_elements(By.TAG_NAME, "circle")
    ]
    centered = vectors - vectors.mean(axis=0)
    principal = np.linalg.svd(centered, full_matrices=False)[0][:, :2] * np.linalg.svd(centered)[1][:2]
    # The axes have different scales in pixels: 260 and 170 for the largest.
    mapped = (np.array(points) - [300, 200]) / [260, -170]
    for component in range(2):
        assert abs(cosines(mapped[None, :, component], principal[None, :, component])[0]) > 0.999
    best = max((vectors @ vectors.T)[np.triu_indices(3, 1)])
    assert bars(output)[0][1] == pytest.approx(best, abs=0.002)


def rows_of(output: WebElement, table: str) -> list[WebElement]:
    return output.find_elements(By.CSS_SELECTOR, f"{table} tbody tr")


def test_documents_are_sorted_by_score(page):
    found = bars(example(page, task(page, RERANKER, "Rerank")))
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert "cup" in found[0][0]


def test_spans_are_marked_where_they_stand(page):
    section = task(page, "small-pii", "Entities")
    text = "😀 My name is Maria Schmidt."
    area = section.find_element(By.TAG_NAME, "textarea")
    page.execute_script("arguments[0].value = arguments[1]", area, text)
    section.find_element(By.CSS_SELECTOR, "button.run").click()
    marks = [mark.text for mark in answered(page, section).find_elements(By.TAG_NAME, "mark")]
    assert [mark.partition("NAME")[0] for mark in marks] == ["MariaGIVEN_", "SchmidtSUR"]


def test_the_best_label_and_word_come_first(page):
    assert bars(example(page, task(page, "small-classifier", "Classify")))[0][0] == "business"
    words = bars(example(page, task(page, "small-splade", "Sparse")))
    assert {"screen", "phone"} <= {word for word, _ in words[:6]}


def test_tokens_past_the_limit_are_struck_out(page):
    section = task(page, EMBEDDER, "Tokens")
    page.execute_script("arguments[0].value = 'a '.repeat(300)", section.find_element(By.TAG_NAME, "textarea"))
    section.find_element(By.CSS_SELECTOR, "button.run").click()
    output = answered(page, section)
    assert len(output.find_elements(By.CSS_SELECTOR, ".token.cut")) == 302 - 256


def test_a_refusal_is_shown_with_its_field(page):
    section = task(page, RERANKER, "Rerank")
    section.find_element(By.CSS_SELECTOR, "button.run").click()
    alert = until(page, lambda: section.find_elements(By.CSS_SELECTOR, "[role=alert]"))[0]
    assert alert.text.startswith("4")
    assert "`texts`" in alert.text


NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def assert_alike(found: Any, expected: Any) -> None:
    """The same JSON, but for the last digits of its numbers."""
    found, expected = json.dumps(found), json.dumps(expected)
    assert NUMBER.sub("#", found) == NUMBER.sub("#", expected)
    pairs = zip(NUMBER.findall(found), NUMBER.findall(expected), strict=True)
    assert [float(one) for one, _ in pairs] == pytest.approx([float(of) for of in NUMBER.findall(expected)], abs=1e-4)


@pytest.mark.parametrize(
    ("model", "name", "path"),
    [(EMBEDDER, "Embeddings", "/v1/embeddings"), (RERANKER, "Rerank", "/rerank"), ("small-pii", "Entities", None)],
)
def test_a_request_is_copied_as_programs_that_get_the_same_answer(page, clients, server_of_all, model, name, path):
    page.execute_script("document.getElementById('key').value = 'secret'")
    output = example(page, task(page, model, name))
    page.execute_script("navigator.clipboard.writeText = () => Promise.reject()")
    programs = {
        "curl": ("bash", "-c"),
        "Python": (sys.executable, "-c"),
        "JavaScript": (clients / "bin/node", "--input-type=module", "-e"),
    }
    answers = []
    buttons = output.find_elements(By.CSS_SELECTOR, ".row button")
    for button, (language, program) in zip(buttons, programs.items(), strict=True):
        assert button.text == f"copy as {language}"
        button.click()
        shown = until(page, lambda: output.find_element(By.TAG_NAME, "pre").text)
        assert f"{server_of_all}/models/{model}{path or '/predict_tokens'}" in shown
        environment = {**os.environ, "KEY": "secret"}
        done = subprocess.run([*program, shown], capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        answers.append((ast.literal_eval if language == "Python" else json.loads)(done.stdout))
    assert len(json.dumps(answers[0])) > 100
    for answer in answers[1:]:
        assert_alike(answer, answers[0])


def fitting(page: Any) -> dict[str, WebElement]:
    """The routes that fit the chosen model, by their paths. They are replaced a while after it was chosen."""
    routes = page.find_elements(By.CSS_SELECTOR, "#routes > details:has(> summary > code)")
    return {route.find_element(By.TAG_NAME, "code").text: route for route in routes}


def test_routes_that_fit_come_first_and_the_others_are_folded(page):
    choose(page, RERANKER)
    until(page, lambda: "/v1/embeddings" not in fitting(page))
    last = page.find_elements(By.CSS_SELECTOR, "#routes > details")[-1]
    assert "routes for other models" in last.text
    assert "/v1/embeddings" in last.get_attribute("textContent")
    route = fitting(page)["/rerank"]
    route.find_element(By.TAG_NAME, "summary").click()
    route.find_element(By.CSS_SELECTOR, "button.run").click()
    told = until(page, lambda: route.find_element(By.CSS_SELECTOR, "[aria-live] pre").text.removeprefix("…"))
    assert '"score"' in told
    route.find_element(By.CSS_SELECTOR, "details details > summary").click()
    answer, error = (of.text for of in until(page, lambda: route.find_elements(By.CSS_SELECTOR, "details details pre")))
    assert answer.startswith("[{\n  index: integer\n  score: number\n  text?: string\n}, …] | {\n")
    assert error.startswith("{\n  error: string\n")
    assert "429 Overloaded" in route.find_element(By.TAG_NAME, "table").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_rules_of_accessibility_hold(page, clients, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    for model in (EMBEDDER, "small-pii"):
        for section in choose(page, model):
            example(page, section)
        page.execute_script((clients / "js/node_modules/axe-core/axe.min.js").read_text())
        found = page.execute_async_script("axe.run().then(arguments[0])")["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []


def test_a_phone_scrolls_in_one_direction(page):
    page.set_window_size(360, 740)
    example(page, task(page, EMBEDDER, "Embeddings"))
    width, inner = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner


def test_the_page_is_small_and_asks_only_its_own_server(page, server_of_all):
    example(page, task(page, EMBEDDER, "Embeddings"))
    asked = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(server_of_all).netloc}
    assert len(httpx.get(f"{server_of_all}/docs").content) < 150_000


def test_the_keyboard_is_enough(page):
    section = task(page, "small-classifier", "Classify")
    area = section.find_element(By.TAG_NAME, "textarea")
    page.execute_script("arguments[0].focus()", area)
    page.switch_to.active_element.send_keys("The striker scored twice in the cup final.\t")
    assert page.switch_to.active_element.text == "Run"
    page.switch_to.active_element.send_keys("\n")
    assert bars(answered(page, section))[0][0] == "sports"
    assert Path(urlsplit(page.current_url).path).name == "docs"


@pytest.fixture(scope="module")
def server_of_labels(tmp_path_factory) -> Iterator[str]:
    """The address of a server of two tiny models that take labels: of inference, and a GLiNER."""
    folder = tmp_path_factory.mktemp("labels")
    classifier(folder / "inference", ["contradiction", "neutral", "entailment"])
    save_gliner(folder / "named", gliner())
    configs = [folder / f"{name}.yaml" for name in ("inference", "named")]
    for config in configs:
        block = tiny_config(config.with_suffix(""))["trt_llm"] | {"runtime": {"served_model_name": config.stem}}
        config.write_text(json.dumps({"trt_llm": block}))
    with serving("--config", str(configs[1]), config=configs[0], log=folder / "log") as url:
        yield url


@pytest.mark.parametrize(("model", "name"), [("inference", "Zero-shot"), ("named", "Entities")])
def test_labels_are_those_of_the_field(browser, server_of_labels, model, name):
    page = opened(browser, f"{server_of_labels}/docs")
    section = task(page, model, name)
    text, labels = section.find_elements(By.TAG_NAME, "textarea")
    text.send_keys("the cat sat on a big old tree")
    labels.send_keys("cat\nbig dog\ntree")
    section.find_element(By.CSS_SELECTOR, "button.run").click()
    found = bars(answered(page, section))
    told = {re.sub(r".*\((.*)\)", r"\1", label) for label, _ in found}
    assert told and told <= {"cat", "big dog", "tree"}
    if name == "Zero-shot":
        assert len(found) == 3
        assert sum(score for _, score in found) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("place", ["/docs", "/"])
def test_behind_a_proxy_that_passes_on_only_a_prefix(browser, server_of_all, place):
    with below("/emb", server_of_all) as (url, refused):
        page = opened(browser, url + place)
        example(page, task(page, RERANKER, "Rerank"))
        example(page, task(page, "small-splade", "Sparse"))  # which asks for the words of its answer, too
        assert page.find_element(By.ID, "openapi").get_attribute("href") == f"{url}/openapi.json"
        choose(page, RERANKER)
        route = until(page, lambda: fitting(page).get("/rerank"))
        route.find_element(By.TAG_NAME, "summary").click()
        route.find_element(By.CSS_SELECTOR, "button.run").click()
        until(page, lambda: '"score"' in route.find_element(By.CSS_SELECTOR, "[aria-live] pre").text)
        assert_nothing_was_logged(page)
        page.get("about:blank")
    assert refused == []


def test_the_first_paint_is_soon(browser, server_of_all, capsys):
    """The bound is lenient, for machines that do other work."""
    found, asked = [], "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    for _ in range(5):
        browser.get(f"{server_of_all}/docs")
        found.append(until(browser, lambda: browser.execute_script(asked)))
    tell(capsys, f"first paint: {statistics.median(found):.0f} ms")
    assert statistics.median(found) < 300
