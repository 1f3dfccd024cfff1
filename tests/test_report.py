"""The HTML report: complete, self-contained, safe against hostile text, and right in a real browser."""

import json
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from alignment.commands.report import main as rebuild_report
from alignment.metrics import RunLog
from alignment.report import ReportStage, find_stages, plot_summary, write_report
from alignment.report_charts import draw_chart, draw_intervals, nice_ticks
from alignment.report_samples import select_samples, split_thinking
from alignment.report_series import Chart, Series, plan_charts, series_from_metrics, smooth
from tests.browser import Browser, find_browser
from tests.report_run import HOSTILE, SUMMARY, write_run


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.text += " "

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "quick <start>"
    write_run(directory)
    rebuild_report(directory)
    return directory


@pytest.fixture(scope="module")
def html(run_dir):
    return (run_dir / "report.html").read_text(encoding="utf-8")


def charts_of(html: str, stage: str) -> dict[str, dict]:
    """Title to hover data of the charts in a stage's section."""
    section = html.split(f"<h2>{stage}</h2>")[1].split("</section>")[0]
    titles = re.findall(r"<figcaption>([^<]+?) ?<", section)
    data = [json.loads(attrs["data-chart"]) for tag, attrs in Page(section).tags if "data-chart" in attrs]
    assert len(titles) == len(data)
    return dict(zip(titles, data))


def test_page_refers_to_nothing_outside(html):
    assert not re.search(r"https?://|url\(\s*[^#)]|@import|//cdn", html)
    for tag, attrs in Page(html).tags:
        assert tag not in ("iframe", "object", "embed", "base"), tag
        for name in ("src", "srcset", "action", "data", "xlink:href"):
            assert name not in attrs, (tag, name)
        if "href" in attrs:
            assert attrs["href"].startswith(("#", "data:,")), attrs


def test_hostile_text_stays_text(html):
    page = Page(html)
    assert HOSTILE in page.text and HOSTILE not in html
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(tag == "img" or any(name.startswith("on") for name in attrs) for tag, attrs in page.tags)
    assert "<title>quick &lt;start&gt;</title>" in html


def test_every_stage_and_chart_is_there(html):
    assert [tag for tag, attrs in Page(html).tags if attrs.get("class") == "stage"] == ["section", "section"]
    assert html.index("<h2>sft</h2>") < html.index("<h2>grpo</h2>")
    assert list(charts_of(html, "sft")) == ["Pass rate", "Loss", "Learning rate", "Gradient norm", "Throughput"]
    grpo = charts_of(html, "grpo")
    expected = ("Reward", "Pass rate", "Loss", "Entropy", "KL divergence", "Completion length", "Clip fraction")
    assert list(grpo)[:6] == list(expected[:6]) and set(expected) < set(grpo)
    assert [s["name"] for s in grpo["Reward"]["series"]] == ["reward/mean", "reward/std", "reward/math"]
    assert [s["name"] for s in grpo["Importance ratio: mean and 2 more"]["series"]] == [
        "ratio/mean",
        "ratio/min",
        "ratio/max",
    ]
    assert len(grpo["Pass rate"]["series"][0]["eval"]) == 7


def test_constant_metrics_are_named_but_not_drawn(html):
    assert "reward/unscored = 0" in html and "reward/format = 0.2" in html
    drawn = [s["name"] for chart in charts_of(html, "grpo").values() for s in chart["series"]]
    assert "reward/unscored" not in drawn and "reward/format" not in drawn


def test_results_settings_and_environment_are_shown_and_secrets_are_not(html):
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "68.7 %" in text and "+68.3 points over base (0.4 %)" in text and "64.8 – 72.6" in text and "5m 22s" in text
    assert "model.name qwen3-tiny" in text and 'rewards ["math", "format"]' in text and "gain.points 27.5" in text
    assert "model.hub_token (hidden)" in text and "hf_private" not in html
    assert "python 3." in text and "usable cores" in text


def test_nan_leaves_a_gap_and_a_remark():
    series = Series("kl", [(1, 0.5), (2, math.nan), (3, 0.7), (4, 0.9)])
    drawn = draw_chart(Chart("KL divergence", "nats", [series]), "clip")
    path = re.search(r'class="line c0" d="([^"]+)"', drawn["svg"])
    assert path and path[1].count("M") == 2 and drawn["remark"] == "1 not finite"
    assert json.loads(drawn["hover"])["series"][0]["middle"][1] is None


def test_a_spike_does_not_flatten_the_curve():
    values = [(step, 1.0 + 0.1 * (step % 3)) for step in range(1, 201)]
    values[50] = (51, 1000.0)
    drawn = draw_chart(Chart("Gradient norm", "", [Series("grad_norm", values)]), "clip")
    assert json.loads(drawn["hover"])["y"][1] < 2.0 and drawn["remark"] == "1 beyond the axis"
    assert json.loads(drawn["hover"])["series"][0]["high"][50] == 1000.0


def test_long_runs_are_reduced_but_keep_extremes():
    values = [(step, math.sin(step / 300) + (5.0 if step == 7777 else 0.0)) for step in range(1, 20_001)]
    drawn = draw_chart(Chart("Loss", "", [Series("loss", values)]), "clip")
    (series,) = json.loads(drawn["hover"])["series"]
    assert len(series["steps"]) == 300 and series["steps"][-1] == 20_000
    assert max(series["high"]) > 4.9 and len(drawn["svg"]) < 30_000


def test_smoothing_is_a_centred_mean_over_finite_values():
    assert smooth(np.array([1.0, 2.0, 6.0]), 3).tolist() == [1.5, 3.0, 4.0]
    assert smooth(np.array([1.0, np.nan, 3.0]), 3)[[0, 2]].tolist() == [1.0, 3.0]
    assert math.isnan(smooth(np.array([1.0, np.nan, 3.0]), 3)[1])
    assert smooth(np.array([4.0, 8.0]), 5).tolist() == [6.0, 6.0] and len(smooth(np.array([]), 3)) == 0


def test_metrics_of_other_size_get_their_own_chart():
    lines = [{"step": s, "kind": "train", "ratio/mean": 1.0 + s / 99, "ratio/max": 200.0 + s} for s in range(5)]
    charts, remarks = plan_charts(series_from_metrics(lines))
    assert [(c.title, [s.key for s in c.series]) for c in charts] == [
        ("Importance ratio: mean", ["ratio/mean"]),
        ("Importance ratio: max", ["ratio/max"]),
    ]
    assert remarks == []


def test_evaluations_join_the_training_curve_of_their_name():
    lines = [
        {"step": 1, "kind": "train", "loss": 2.0},
        {"step": 1, "kind": "eval", "eval/loss": 2.5},
        {"step": 2, "kind": "eval", "eval_loss": 2.25},
    ]
    table = series_from_metrics(lines)
    assert list(table) == ["loss"] and table["loss"].eval == [(1, 2.5), (2, 2.25)]


def test_ticks_are_round_and_inside():
    assert nice_ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(3e-6, 2.1e-5, 4) == [5e-6, 1e-5, 1.5e-5, 2e-5]
    assert nice_ticks(-120.0, 130.0, 4) == [-100.0, 0.0, 100.0]


def test_tick_labels_share_precision_and_size():
    drawn = draw_chart(Chart("Loss", "", [Series("loss", [(1, 0.0), (6000, 1e-5), (12_000, 2e-5)])]), "clip")
    labels = re.findall(r'<text class="tick"[^>]*>([^<]+)<', drawn["svg"])
    assert labels == ["0", "1e-5", "2e-5", "2.5k", "5k", "7.5k", "10k", "step"]


def test_interval_chart_places_rate_between_its_whiskers():
    svg = draw_intervals([{"name": "<b>", "pass_rate": 0.5, "ci_low": 0.25, "ci_high": 0.75}])
    ((low, high),) = re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)M', svg)
    (dot,) = re.findall(r'<circle [^>]*cx="([\d.]+)"', svg)
    assert float(dot) == pytest.approx((float(low) + float(high)) / 2, abs=0.11)
    assert float(low) < float(high) and "&lt;b&gt;" in svg and "50.0 %" in svg


def test_sample_views_hold_best_worst_and_latest():
    records = [{"step": s, "prompt": "p", "completion": "c", "reward": s / 1000} for s in range(1000)]
    records += [{"step": 1000, "prompt": "p", "completion": "c", "reward": value} for value in (None, "nan", 0.5)]
    views = select_samples(records)
    chosen = lambda view: [sample.reward for sample in views if view in sample.views]
    assert len(views) == 120 and chosen("latest") == [None, None, 0.5]
    assert chosen("best") == [value / 1000 for value in range(999, 975, -1)]
    assert chosen("worst") == [value / 1000 for value in range(23, -1, -1)]
    assert {sample.share for sample in views if sample.reward in (0.0, 0.999)} == {0.0, 100.0}
    assert select_samples([]) == []


def test_thinking_is_told_apart_from_the_answer():
    assert split_thinking("<think>a</think>b") == [("thinking", "<think>a</think>"), ("text", "b")]
    assert split_thinking("x<think>cut off") == [("text", "x"), ("thinking", "<think>cut off")]
    assert split_thinking("") == []


def test_report_without_summary_samples_or_metrics(tmp_path):
    with RunLog(tmp_path / "run", 1, console=False) as log:
        log.train(1, {"loss": 1.0}, tokens=5)
    stages = [ReportStage("untrained", tmp_path / "nothing"), ReportStage("run", tmp_path / "run")]
    write_report(tmp_path / "out" / "report.html", "A run", stages, None)
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("No training metrics.") == 2 and "loss = 1" in html and 'id="results"' not in html


def test_stages_follow_the_summary_and_a_directory_without_a_run_is_refused(tmp_path, run_dir):
    assert [stage.name for stage in find_stages(run_dir)] == ["sft", "grpo"]
    reverse = {"stages": [{"name": "grpo"}, {"name": "sft"}]}
    assert [stage.name for stage in find_stages(run_dir, reverse)] == ["grpo", "sft"]
    assert [stage.name for stage in find_stages(run_dir / "grpo")] == ["grpo"]
    with pytest.raises(ValueError, match=r"no metrics\.jsonl in .*give the output directory"):
        rebuild_report(tmp_path)


def test_damaged_settings_are_named_and_leave_the_old_report(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        rebuild_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_summary_picture_is_a_png(tmp_path):
    plot_summary(tmp_path / "docs" / "summary.png", {"seed 0": SUMMARY, "seed 1": SUMMARY})
    assert (tmp_path / "docs" / "summary.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def browser(tmp_path):
    binary = find_browser()
    if binary is None:
        message = "no Chromium found; install the package chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with Browser(binary, tmp_path / "profile") as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.browser
def test_browser_listener_notices_errors_and_requests(browser, tmp_path):
    """The positive control of the test below."""
    (tmp_path / "bad.html").write_text("<img src='missing.png'><script>undefinedName()</script>")
    browser.open((tmp_path / "bad.html").as_uri(), 800, 600, "light")
    assert any("undefinedName" in problem for problem in browser.problems)
    assert any(address.endswith("missing.png") for address in browser.requests)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(246, 247, 249)"), ("dark", "rgb(15, 18, 23)")])
def test_report_works_in_a_real_browser(browser, run_dir, width, scheme, background):
    address = (run_dir / "report.html").as_uri()
    browser.open(address, width, 1000, scheme)
    run = browser.run
    assert run("document.documentElement.dataset.ready") == "true"
    assert run("getComputedStyle(document.body).backgroundColor") == background
    assert run("document.documentElement.scrollWidth") == width
    overlaps = """[...document.querySelectorAll('.chart svg')].flatMap((svg) => {
      const boxes = [...svg.querySelectorAll('text')].map((t) => t.getBoundingClientRect());
      return boxes.filter((a, i) => boxes.some((b, j) => i < j && a.left < b.right && b.left < a.right
        && a.top + 2 < b.bottom && b.top + 2 < a.bottom)); }).length"""
    assert run(overlaps) == 0

    run("document.querySelector('#stage-2 .chart').scrollIntoView({behavior: 'instant', block: 'center'})")
    box = run("(({x, y, width, height}) => [x, y, width, height])"
              "(document.querySelector('#stage-2 .chart svg').getBoundingClientRect())")  # fmt: skip
    browser.move_mouse(box[0] + box[2] / 2, box[1] + box[3] / 2)
    assert run("document.querySelector('#stage-2 .tip').hidden") is False
    assert re.match(r"step \d+reward/mean [\d.]+ \(raw", run("document.querySelector('#stage-2 .tip').textContent"))

    shown = "[...document.querySelectorAll('#stage-2 .samples li')].filter((row) => row.offsetHeight > 0)"
    assert run(f"{shown}.map((row) => row.dataset.step)") == ["120"] * 8
    run("document.querySelector('#stage-2 [data-view=worst]').click()")
    assert run(f"{shown}.map((row) => row.dataset.reward)") == ["0.0"] * 24
    run("document.querySelector('#stage-2 [data-view=all]').click()")
    run("{ const field = document.querySelector('#stage-2 input'); field.value = 'ONERROR';"
        " field.dispatchEvent(new Event('input')) }")  # fmt: skip
    assert run(f"{shown}.length") == 12
    assert run("document.title") == "quick <start>"
    image = browser.screenshot()
    assert image.startswith(b"\x89PNG") and len(image) > 20_000
    assert browser.problems == [] and browser.requests == [address]
