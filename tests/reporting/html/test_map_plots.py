"""Maps of embeddings on the page."""

from collections.abc import Sequence

from kd_app.reporting.embedding_map import MapRow
from kd_app.reporting.html.map_plots import plot_maps


def _rows(labels: Sequence[str | None]) -> list[MapRow]:
    return [
        MapRow(role, number, f"{number}.png", label, number / 7, (number * 3 % 5) / 5, 0.25)
        for role in ("teacher", "untouched", "student")
        for number, label in enumerate(labels)
    ]


def test_each_model_has_a_map_with_all_images_and_its_share() -> None:
    charts = list(plot_maps(_rows(["cat", "dog", None])))
    assert [chart.title for chart in charts] == [
        "Teacher: 25.0 % of the variance",
        "Untouched: 25.0 % of the variance",
        "Distilled: 25.0 % of the variance",
    ]
    assert [name for _, name in charts[0].legend] == ["no label", "cat", "dog"]
    assert all(chart.svg.count('class="mark') == 3 for chart in charts)
    assert "0.png: cat" in charts[0].svg


def test_rare_classes_share_a_gray_marker() -> None:
    labels = [f"class {number}" for number in range(12)] * 2
    chart = next(plot_maps(_rows([*labels[:-2], *labels[:10]])))
    names = [name for _, name in chart.legend]
    assert (len(names), names[0]) == (11, "others")
    keys = [str(key) for key, _ in chart.legend]
    assert len(set(keys)) == 11, "no two classes look alike"


def test_images_without_labels_need_no_legend() -> None:
    chart = next(plot_maps(_rows([None, None])))
    assert chart.legend == []
    assert chart.svg.count('class="mark c0"') == 2
