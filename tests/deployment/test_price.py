"""Price of a million images."""

import pytest

from kd_app.config import RequestError
from kd_app.deployment.price import Price


def price(core: float = 0.036, device: float | None = None) -> Price:
    return Price(per_core_hour=core, per_device_hour=device, currency="USD")


def test_the_price_is_that_of_the_hours_for_a_million_images() -> None:
    assert price().compute_per_million(1000) == pytest.approx(0.01)  # 1000 s = 1 / 3.6 h


def test_cores_in_use_are_billed_and_at_least_one() -> None:
    assert price().compute_per_million(1000, cores=0.4) == pytest.approx(0.01)
    assert price().compute_per_million(1000, cores=2.0) == pytest.approx(0.02)


def test_a_price_per_device_does_not_depend_on_cores() -> None:
    assert price(device=3.6).compute_per_million(1000, cores=7.0) == pytest.approx(1.0)


def test_the_formula_includes_its_numbers() -> None:
    assert (
        price().describe_formula(1000)
        == "1e6 images / 1,000.0 images/s / 3600 s/h x 0.036 USD per core-hour = 0.01 USD per"
        " million images"
    )
    assert "x 1.50 cores x" in price().describe_formula(1000, cores=1.5)
    assert "3.6 USD per device-hour" in price(device=3.6).describe_formula(1000, cores=1.5)


def test_a_price_must_be_above_0() -> None:
    with pytest.raises(RequestError, match="per_core_hour"):
        price(core=0.0)
