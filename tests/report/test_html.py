"""The HTML report says what its document says, whatever is missing there, and needs no network."""

import re
import shutil
import struct
import subprocess
import zlib

import pytest
from report.documents import deep, digits, empty, nothing, trial

from amct_pytorch.report.chart import progress_of
from amct_pytorch.report.html import render
from amct_pytorch.report.sensitivity import ranking_of
from amct_pytorch.report.text import brief

CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
HOSTILE = """<script>alert("1")</script>&'conv'"""
DOCUMENTS = {
    "digits": digits(),
    "deep": deep(),
    "empty": empty(),
    "no sections": {},
    "nothing": nothing(digits()),
    "one layer": digits() | {"layers": digits()["layers"][:1], "trials": digits()["trials"][:1]},
    "no layers": digits() | {"layers": [], "trials": []},
    "not scored": digits()
    | {"layers": [layer | {"rank": None, "score": None} for layer in digits()["layers"]]},
}


def words(page: str) -> str:
    """What a reader sees: no style, script or tag, and single spaces."""
    body = re.sub(r"<(style|script|title)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


# --- content -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("satisfied", "headline"),
    [
        (True, "The accuracy goal is met"),
        (False, "The accuracy goal is not met"),
        (None, "The outcome is unknown"),
    ],
)
def test_the_headline_says_whether_the_metric_holds(satisfied, headline):
    document = digits()
    document["outcome"]["satisfied"] = satisfied
    assert f"<h1>{headline}</h1>" in render(document)


@pytest.mark.parametrize(
    "figure",
    [
        "0.98 → 0.975 as your evaluator has it",
        "Loss of the metric 0.005 satisfied",
        "6 of 7 1 rolled back, 0 left float",
        "Share of MACs quantized 90 %",
        "49.4 kB → 13 kB 26.4 % of the float size",
        "5 of 6 planned 2 calibrations, 1 evaluation resumed",
        "12.0 s 66.7 % in your evaluation, 8.3 % in calibration, 25 % in the tool",
        "0 torch simulation against ONNX Runtime on input_data",
    ],
)
def test_key_figures(figure):
    assert figure in words(render(digits()))


def test_a_limit_that_stopped_the_search_is_named():
    assert "stopped early, at the limit max_evaluations" in words(render(deep()))
    assert "stopped early" not in words(render(digits()))


def test_layers_in_float_are_listed_with_their_reason():
    kept = render(digits()).split('id="kept"')[1].split("</section>")[0]
    assert "depthwise Conv2d rolled back 1 without it in float" in words(kept)
    assert "stem.0" not in kept


def test_a_metric_that_is_no_number_is_shortened_and_whole_in_the_tooltip():
    page = render(deep())
    assert "{&#34;top1&#34;: 0.7612, &#34;top5&#34;: 0.9" in page
    assert "&#34;per_class&#34;: [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]}" in page


def test_floats_of_a_metric_are_rounded():
    assert brief({"top1": 0.7111999999999999}) == '{"top1": 0.7112}'


@pytest.mark.parametrize("name", DOCUMENTS)
def test_any_value_may_be_missing(name):
    text = words(render(DOCUMENTS[name]))
    assert "Glossary" in text
    assert re.findall(r"\b(None|nan|inf|Undefined)\b", text) == []


# --- safety ------------------------------------------------------------------------------------


def test_names_of_the_user_are_escaped():
    document = digits()
    document["layers"][0] |= dict.fromkeys(["name", "type", "reason", "state"], HOSTILE)
    document["model"]["class"] = document["outcome"]["summary"] = HOSTILE
    document["outcome"]["original_metric"] = document["created"] = HOSTILE
    document["trials"][0] |= {"rolled_back": [HOSTILE], "kind": HOSTILE, "metric": HOSTILE}
    document["settings"][HOSTILE] = document["files"][HOSTILE] = HOSTILE
    page = render(document)
    assert page.count("<script>") == 1
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;&#39;conv&#39;" in page


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_page_refers_to_nothing_outside(name):
    page = render(DOCUMENTS[name])
    assert re.findall(r"https?:|//\w|@import|url\(|\bsrc=", page) == []
    assert {link[0] for link in re.findall(r'href="([^"]*)"', page)} <= {"#", "d"}
    assert 'href="data:,"' in page


# --- charts ------------------------------------------------------------------------------------


def test_bars_of_cosines_show_decades_of_damage():
    layers = [{"rank": 2, "score": 0.999}, {"rank": 1, "score": 0.9}, {"rank": 3, "score": 1.0}]
    ranking = ranking_of(layers, "CosineSimilaritySensitivity")
    assert [bar.layer["score"] for bar in ranking.bars] == [0.9, 0.999, 1.0]
    assert ranking.ticks == ("0.0001", "0.001", "0.01", "0.1")
    lengths = [bar.length for bar in ranking.bars]
    assert lengths == pytest.approx([100, 100 / 3, 0])


@pytest.mark.parametrize(
    ("scores", "ticks", "lengths"),
    [
        ([10.0, 5.0, 0.0], ("0", "2.5", "5", "7.5", "10"), [100, 50, 0]),
        ([20.0, 30.0, 40.0], ("40", "35", "30", "25", "20"), [100, 50, 0]),
        ([1.0, 0.1, 0.01], ("0.001", "0.01", "0.1", "1"), [100, 200 / 3, 100 / 3]),
        ([7.0], ("0", "1.75", "3.5", "5.25", "7"), [100]),
        ([0.0, 0.0], ("0",), [0, 0]),
    ],
    ids=["larger is worse", "smaller is worse", "decades", "one layer", "all zero"],
)
def test_bars_of_other_scores(scores, ticks, lengths):
    layers = [{"rank": rank, "score": score} for rank, score in enumerate(scores, 1)]
    ranking = ranking_of(layers, "Mine")
    assert ranking.ticks == ticks
    assert [bar.length for bar in ranking.bars] == pytest.approx(lengths)


def test_a_ranked_layer_without_a_finite_score_has_no_bar():
    layers = [{"rank": 1, "score": None, "name": "a"}, {"rank": 2, "score": 0.9, "name": "b"}]
    assert [bar.damage is None for bar in ranking_of(layers, None).bars] == [True, False]
    assert "no finite score" in words(render({"layers": layers}))


def test_metrics_are_plotted_below_or_above_the_level_of_the_float_model():
    progress = progress_of(digits()["trials"], 0.98)
    assert (progress.quantity, progress.level) == ("metric", 0.98)
    assert [point.x for point in progress.points] == [20, 40, 60, 80, 100]
    assert all(progress.level_y < point.y < progress.height for point in progress.points)


@pytest.mark.parametrize("metric", [{"top1": 0.5}, "text", True, [0.5]])
def test_losses_are_plotted_where_a_metric_is_no_number(metric):
    trials = [trial(1, "full", [], 7, metric, False, 0.25), trial(2, "final", [], 6, 0.9, True, 0)]
    progress = progress_of(trials, 0.98)
    assert (progress.quantity, progress.level) == ("loss", 0.0)
    assert [point.value for point in progress.points] == [0.25, 0]


def test_a_metric_that_is_not_finite_stands_at_the_bottom():
    trials = [trial(1, "full", [], 7, None, False, None), trial(2, "final", [], 6, 0.9, True, 0)]
    assert progress_of(trials, 0.98).points[0].y == progress_of(trials, 0.98).height
    assert "marks on the axis: not a finite number" in words(render({"trials": trials}))


@pytest.mark.parametrize("metric", ["text", None])
def test_there_is_no_chart_without_numbers(metric):
    assert progress_of([trial(1, "full", [], 7, metric, False, None)], metric) is None


# --- in a browser ------------------------------------------------------------------------------

# Errors go to the title; the width is measured once everything is laid out.
PROBE = """<script>window.onerror = (text) => { document.title = "ERROR " + text; };
document.addEventListener("securitypolicyviolation", () => { document.title = "ERROR policy"; });
addEventListener("load", () => {
  for (const step of STEPS) step();
  const root = document.documentElement;
  root.dataset.widths = root.scrollWidth + " " + root.clientWidth;
});
const STEPS = [];</script>"""


def browse(path, *flags: str) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={path.parent}/profile", "--virtual-time-budget=3000"]
    command += ["--enable-logging=stderr", "--v=0", *flags, path.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in run.stderr
    assert "Uncaught" not in run.stderr
    return run.stdout


def probed(document, *steps: str) -> str:
    """The page of `document` with the probe, and with `steps` (JavaScript) done after loading."""
    probe = PROBE + "<script>" + "".join(f"STEPS.push(() => {{ {step} }});" for step in steps)
    return render(document).replace("<head>", f"<head>{probe}</script>", 1)


def names_in_table(dom: str) -> list[str]:
    table = dom.split('id="layer-table"')[1].split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr(.*?)>(.*?)</tr>", table, flags=re.DOTALL)
    return [re.search(r"<bdi[^>]*>(.*?)</bdi>", row)[1] for tag, row in rows if "hidden" not in tag]


def colours(png: bytes) -> tuple[int, int, set[bytes]]:
    """Width, height and colours of the pixels of an RGB or RGBA file of eight bits."""
    assert png.startswith(b"\x89PNG")
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (depth, kind in (2, 6)) == (8, True)
    place, packed = 8, b""
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            packed += png[place + 8 : place + 8 + length]
        place += length + 12
    raw, size = zlib.decompress(packed), 3 if kind == 2 else 4
    above, found = bytearray(width * size), set()
    for start in range(0, len(raw), width * size + 1):
        method, line = raw[start], bytearray(raw[start + 1 : start + 1 + width * size])
        for i, value in enumerate(line):
            left, corner = (line[i - size], above[i - size]) if i >= size else (0, 0)
            guess = left + above[i] - corner
            nearest = min(left, above[i], corner, key=lambda byte: abs(guess - byte))
            part = (0, left, above[i], (left + above[i]) // 2, nearest)[method]
            line[i] = (value + part) % 256
        found |= {bytes(line[i : i + size]) for i in range(0, len(line), size)}
        above = line
    return width, height, found


@pytest.fixture
def page(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    return tmp_path / "page.html"


@pytest.mark.parametrize("document", [digits(), deep()], ids=["digits", "deep"])
def test_the_table_holds_the_layers_in_model_order(page, document):
    page.write_text(probed(document))
    dom = browse(page, "--dump-dom")
    assert "<title>ERROR" not in dom
    assert names_in_table(dom) == [layer["name"] for layer in document["layers"]]


@pytest.mark.parametrize(
    ("clicks", "order"),
    [(1, slice(None)), (2, slice(None, None, -1))],
    ids=["ascending", "descending"],
)
def test_a_click_on_a_heading_sorts_and_unknown_values_stay_last(page, clicks, order):
    document = digits()
    document["layers"].insert(0, document["layers"][0] | {"name": "unscored", "rank": None})
    click = "document.querySelectorAll('#layer-table thead tr:last-child button')[3].click();"
    page.write_text(probed(document, click * clicks))
    by_rank = sorted(document["layers"][1:], key=lambda layer: layer["rank"])
    expected = [layer["name"] for layer in by_rank][order]
    assert names_in_table(browse(page, "--dump-dom")) == [*expected, "unscored"]


def test_the_filter_keeps_the_rows_that_match(page):
    step = "const box = document.getElementById('filter'); box.value = 'Rolled'; "
    page.write_text(probed(digits(), step + "box.dispatchEvent(new Event('input'));"))
    assert names_in_table(browse(page, "--dump-dom")) == ["depthwise"]


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["digits", "deep", "nothing", "hostile"])
def test_the_page_is_as_wide_as_the_window(page, name, width):
    document = DOCUMENTS.get(name) or digits()
    if name == "hostile":
        document["layers"][3]["name"] = document["outcome"]["summary"] = "long" * 100
        document["files"]["report"] = document["model"]["class"] = "long" * 100
    page.write_text(probed(document))
    # A browser may refuse small windows; a frame has the width that it is given.
    frame = page.with_name("frame.html")
    measure = "document.body.dataset.widths = this.contentDocument.documentElement.dataset.widths"
    frame.write_text(
        f'<body><iframe src="page.html" width="{width}" height="900" style="border: 0"'
        f' onload="{measure}"></iframe></body>'
    )
    dom = browse(frame, "--dump-dom", "--allow-file-access-from-files", "--window-size=1400,1000")
    assert f'data-widths="{width} {width}"' in dom


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_is_drawn(page, scheme):
    page.write_text(render(digits()))
    picture = page.with_name("page.png")
    setting = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    browse(page, f"--screenshot={picture}", "--window-size=700,900", setting)
    width, height, found = colours(picture.read_bytes())
    assert (width, height) == (700, 900)
    assert len(found) > 50
    bars = {"dark": bytes.fromhex("5f9fe0"), "light": bytes.fromhex("2f6db3")}
    assert bars[scheme] in {colour[:3] for colour in found}
