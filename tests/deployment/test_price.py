"""What a million images cost."""

import pytest

from kd_app.config import RequestError
from kd_app.deployment.price import Price


def price(core: float = 0.036, device: float | None = None) -> Price:
    return Price(per_core_hour=core, per_device_hour=device, currency="USD")


def test_a_million_images_cost_the_hours_they_take() -> None:
    assert price().compute_per_million(1000) == pytest.approx(0.01)  # 1000 s = 1 / 3.6 h


def test_a_core_is_paid_whole_and_each_core_that_was_in_use() -> None:
    assert price().compute_per_million(1000, cores=0.4) == pytest.approx(0.01)
    assert price().compute_per_million(1000, cores=2.0) == pytest.approx(0.02)


def test_a_device_that_is_rented_whole_costs_the_same_whatever_its_cores_do() -> None:
    assert price(device=3.6).compute_per_million(1000, cores=7.0) == pytest.approx(1.0)


def test_the_formula_is_told_with_its_numbers() -> None:
    assert (
        price().describe_formula(1000)
        == "1e6 images / 1,000.0 images/s / 3600 s/h x 0.036 USD per core-hour = 0.01 USD per"
        " million images"
    )
    assert "x 1.50 cores x" in price().describe_formula(1000, cores=1.5)
    assert "3.6 USD per device-hour" in price(device=3.6).describe_formula(1000, cores=1.5)


def test_a_price_is_above_nothing() -> None:
    with pytest.raises(RequestError, match="per_core_hour"):
        price(core=0.0)
