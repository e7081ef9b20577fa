"""The report page, what compares two of them, and plots."""

import base64
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from farworld.line_plot import line_plot
from farworld.train.compare import _interval, compare_results, t_quantile
from farworld.train.report import read_results, write_report
from farworld.video import decode_mp4

FACTS = {"command": "farworld eval --ckpt a<b", "commit": "1234567", "seeds": [0, 1]}
EXAM = {  # as any exam's result looks
    "name": "memory </script><b>",
    "summary": {"recall": 0.5},
    "series": {"true.psnr": [20.0, None, 25.5], "shuffled.psnr": [10.0, 11.0, 12.0], "level": [1.0, 2.0]},
    "table": [{"gap": 10, "PSNR, dB": 21.123456, "what": "a & b"}, {"gap": 20, "ssim": None}],
    "notes": ["5 < 6 episodes"],
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def page(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (6, 17, 31, 3), np.uint8)
    frames = frames // 4 + 100
    write_report(tmp_path / "new" / "page.html", "Worlds & dreams", FACTS, [EXAM], {"episode <1>": frames})
    return tmp_path / "new" / "page.html"


def test_any_exams_result_is_shown(page):
    text = page.read_text(encoding="utf-8")
    for piece in ("Worlds &amp; dreams", "a&lt;b", "5 &lt; 6 episodes", "21.12", "a &amp; b", "<td>–</td>", "0, 1"):
        assert piece in text, piece
    plots = [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", text, re.S)]
    assert len(plots) == 2  # two series of psnr, and one of level
    words = ["".join(plot.itertext()) for plot in plots]
    assert all(name in words[0] for name in ("psnr", "true", "shuffled")) and "level" in words[1]


def test_the_page_needs_nothing_else(page):
    """No network: the only address in it is the name of SVG's namespace."""
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r'https?://[^"\s<]+', text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "@import" not in text


def test_videos_are_in_the_page(page):
    """Enlarged to be seen, with sides that H.264 takes."""
    (content,) = re.findall('data:video/mp4;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    frames = decode_mp4(base64.b64decode(content))
    assert len(frames) == 6 and frames.shape[1] in range(170, 210) and frames.shape[2] > frames.shape[1]
    assert 90 < frames.mean() < 170


def test_results_come_back_from_the_page_and_from_json(page, tmp_path):
    """Names that end a script element don't end this one."""
    expected = {**FACTS, "results": [EXAM]}
    assert read_results(page) == expected
    (tmp_path / "printed.json").write_text("greetings\n" + json.dumps(expected) + "\n")
    assert read_results(tmp_path / "printed.json") == expected
    (tmp_path / "exam.json").write_text(json.dumps(EXAM, indent=1))
    assert read_results(tmp_path / "exam.json") == {"results": [EXAM]}


@pytest.mark.parametrize("content", ["", "no results", "[1]", '{"psnr": 3}', "<html></html>"])
def test_files_without_results_are_named(tmp_path, content):
    path = tmp_path / "other"
    path.write_text(content)
    with pytest.raises(ValueError, match="other holds no results"):
        read_results(path)
    with pytest.raises(FileNotFoundError, match="no results at"):
        read_results(tmp_path / "nowhere")


def result(scores, name="a", episodes=("x", "y", "z", "w")):
    values = {"psnr": scores}
    return {
        "name": name,
        "summary": {"psnr": float(np.mean(scores)), "count": 4},
        "scores": values,
        "episodes": list(episodes),
    }


EASY_AND_HARD = np.array([[10.0, 20.0, 30.0, 15.0]])
SMALL_GAIN = np.array([[0.9, 1.1, 1.0, 1.05]])


def test_the_same_episodes_show_a_small_difference_that_others_hide():
    """Paired, an even gain of one stands out; between other episodes it drowns in how hard they are."""
    before, after = result(EASY_AND_HARD), result(EASY_AND_HARD + SMALL_GAIN)
    row, other = compare_results({"results": [before]}, {"results": [after]})
    assert row["difference"] == pytest.approx(1.0125) and row["noise"] == "more than noise"
    spread = np.std(SMALL_GAIN, ddof=1) / 2
    assert row["±"] == pytest.approx(3.182 * spread)
    elsewhere = result(EASY_AND_HARD + SMALL_GAIN, episodes="abcd")
    assert compare_results({"results": [before]}, {"results": [elsewhere]})[0]["noise"] == "within noise"
    assert other["figure"] == "count" and other["noise"] == "unknown" and other["±"] is None


def test_figures_of_all_episodes_together_are_judged_by_their_seeds():
    seeds = np.array([[100.0], [101.0], [99.0]])
    one, other, single = result(seeds), result(seeds + 10), result(seeds[:1] + 10)
    (row, _), (unknown, _) = (compare_results({"results": [one]}, {"results": [x]}) for x in (other, single))
    assert row["noise"] == "more than noise" and row["±"] == pytest.approx(2.776 * np.sqrt(2 / 3), rel=1e-3)
    assert unknown["noise"] == "unknown"


def test_noise_is_seldom_called_more():
    """95 % intervals: of 400 comparisons of the same with the same about 20 are."""
    rng = np.random.default_rng(0)
    calls = []
    for _ in range(400):
        level = rng.normal(20, 5, (1, 6))
        pair = [{"results": [result(level + rng.normal(size=(2, 6)), episodes="uvwxyz")]} for _ in range(2)]
        calls.append(compare_results(*pair)[0]["noise"] == "more than noise")
    assert 8 <= sum(calls) <= 36


def test_results_are_matched_by_name_or_as_the_only_ones():
    a, b = result(EASY_AND_HARD, "one step"), result(EASY_AND_HARD, "two steps")
    assert compare_results({"results": [a, b]}, {"results": [b]})[0]["result"] == "two steps"
    assert compare_results({"results": [a]}, {"results": [b]})[0]["result"] == "one step → two steps"
    with pytest.raises(ValueError, match="nothing to compare: one has one step; the other has two steps, c"):
        compare_results({"results": [a]}, {"results": [b, result(EASY_AND_HARD, "c")]})


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (5, 2.571), (10, 2.228), (20, 2.086), (60, 2.000)])
def test_quantiles_are_those_of_students_t(freedom, expected):
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.006)


def test_a_rounding_error_costs_no_degree_of_freedom():
    """Of eight paired differences 9 % were judged with six degrees of freedom instead of seven."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        gains = rng.normal(size=8)
        expected = 2.365 * gains.std(ddof=1) / np.sqrt(8)
        assert _interval([gains]) == pytest.approx(expected, rel=1e-9)


def points_of(svg):
    return [
        [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.get("d"))[1:]]
        for path in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if path.get("stroke-width") == "1.8"
    ]


def test_lines_go_up_where_values_do_and_stop_at_gaps():
    svg = line_plot({"a": [(0, 1.0), (1, 2.0), (2, None), (3, 4.0), (4, 3.0)], "b": [(0, float("nan"))]})
    (line,) = points_of(svg)
    assert [x for x, _ in line] == sorted(x for x, _ in line) and len(line) == 4
    assert line[0][1] > line[1][1] > line[2][1] < line[3][1]  # SVG counts downwards
    assert svg.count("M") - svg.count('d="M') == 1  # one gap


def test_a_logarithmic_axis_has_even_steps_for_factors():
    (line,) = points_of(line_plot({"a": [(1, 0.0), (10, 0.0), (100, 1.0)]}, log_x=True))
    assert line[1][0] - line[0][0] == pytest.approx(line[2][0] - line[1][0], abs=0.2)
    with pytest.raises(ValueError, match="begins above 0"):
        line_plot({"a": [(0, 1.0)]}, log_x=True)


def test_points_stay_inside_and_ticks_are_round():
    svg = line_plot({"a": [(144, -0.03), (300, 0.052)]}, title="<t>", marks=True, labels={"a": ["4 steps", "&"]})
    root = ElementTree.fromstring(svg)
    width, height = (float(root.get(side)) for side in ("width", "height"))
    marks = [*root.iter(f"{SVG}circle")]
    assert len(marks) == 2
    assert all(0 < float(mark.get("cx")) < width and 0 < float(mark.get("cy")) < height for mark in marks)
    words = [text.text for text in root.iter(f"{SVG}text")]
    ends = {text.text: float(text.get("x")) for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "end"}
    assert ends["&"] < float(marks[1].get("cx"))  # what stands at the right edge is written at its left
    assert {"<t>", "a", "4 steps", "&", "150", "300", "−0.02", "0.04"} <= set(words)


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [(1, None)]}, {"a": [(3, 5.0)]}, {"a": [(0, 0.0), (1, 0.0)]}])
def test_hardly_any_data_is_no_error(lines):
    ElementTree.fromstring(line_plot(lines))
