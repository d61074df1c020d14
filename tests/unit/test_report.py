"""`tiercel report`: one page, from the manifests alone."""

import re
import xml.etree.ElementTree as ET

import msgspec
import pytest
from builders import manifest, tensor

from inference_core.manifest import Check, Gate, Manifest, ModelFile, Step
from model_tools.report import report


def variant(version: str, *checks: Check, harm: dict[str, float] | None = None) -> Manifest:
    latency = Check("latency of one row", float(version), "ms")
    return msgspec.structs.replace(
        manifest([tensor("FP32", -1, 2)]),
        version=version,
        description="<b>bold</b>",
        model=ModelFile("0" * 64, 1000 * int(version)),
        gate=Gate((*checks, latency), 10, "x86_64 avx2"),
        lineage=(Step("static-int8", {"harm": harm} if harm else {}, ModelFile("0" * 64, 1)),),
    )


def accurate(percent: float) -> Check:
    return Check("accuracy", percent, "%", at_least=90)


def test_variants_are_drawn_by_what_they_cost_and_keep() -> None:
    """The faster is to the left, the better above; sizes have a drawing of their own."""
    page = report([variant("1", accurate(97)), variant("2", accurate(98.5))])
    drawings = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]  # noqa: S314  # our own
    assert len(drawings) == 2
    for drawing in drawings:
        [first, second] = drawing.iter("circle")
        assert float(first.attrib["cx"]) < float(second.attrib["cx"])
        assert float(first.attrib["cy"]) > float(second.attrib["cy"])
    titles = [title.text for title in drawings[0].iter("title")]
    assert titles == ["m/1: 1, 97", "m/2: 2, 98.5"]


def test_figures_stand_beside_their_budgets() -> None:
    page = report([variant("1", accurate(97))])
    assert '<td>accuracy</td><td class="number">97 %</td><td>at least 90</td>' in page
    assert "&lt;b&gt;bold&lt;/b&gt; 10 held-out rows, x86_64 avx2." in page


def test_layers_are_listed_by_the_harm_they_do() -> None:
    """Where a search has measured it."""
    page = report([variant("1", accurate(97), harm={"small": 0.01, "large": 0.5})])
    assert page.index("<td>large</td>") < page.index("<td>small</td>")
    assert "this layer alone" not in report([variant("1", accurate(97))])


def test_layers_are_drawn_by_how_far_they_have_moved() -> None:
    """Each with what calibration saw, over the range that INT8 has for it."""
    layers = {
        "near<": {"error": 0.01, "low": -1.0, "high": 1.0, "counts": [0, 5, 20, 0]},
        "far": {"error": 0.5, "low": 0.0, "high": 6.0, "counts": [0, 10, 5, 15]},
        "left": {"error": 0.02, "low": 0.0, "high": 0.0, "counts": []},
    }
    quantised = variant("1", accurate(97))
    step = Step("static-int8", {"layers": layers}, ModelFile("0" * 64, 1))
    page = report([msgspec.structs.replace(quantised, lineage=(step,))])
    places = [page.index(f"<td>{name}</td>") for name in ("far", "left", "near&lt;")]
    assert places == sorted(places)
    drawings = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)][2:]  # noqa: S314  # our own
    assert [drawing.findtext("title") for drawing in drawings] == ["0 to 6", "-1 to 1"]
    heights = [[float(bar.attrib["height"]) for bar in drawing.iter("rect")] for drawing in drawings]
    assert heights[0][0] == 0
    assert heights[0][3] > heights[0][1] > heights[0][2] > 0
    assert '<td class="number">50.00 %</td>' in page
    assert "stays FP32" in page


def test_the_quality_is_one_that_all_have() -> None:
    agreeing = Check("agreement with the export", 99.0, "%")
    page = report([variant("1", accurate(97), agreeing), variant("2", agreeing)])
    assert "agreement with the export, " in page
    with pytest.raises(ValueError, match=r"^report: expected packages that all have a figure for one of accuracy, "):
        report([variant("1", accurate(97)), variant("2")])


def test_a_package_without_a_gate_has_nothing_to_show() -> None:
    with pytest.raises(ValueError, match=r"^report: expected packages that `tiercel build` made"):
        report([manifest([tensor("FP32", -1, 2)])])


def test_nothing_is_fetched() -> None:
    """The page stands alone."""
    assert not re.search(r"https?://|src=|href=|url\(", report([variant("1", accurate(97))]))
