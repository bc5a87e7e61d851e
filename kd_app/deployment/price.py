"""Price of a million images, from throughput and the price of an hour."""

from typing import Annotated

from pydantic import Field

from kd_app.config import Typed

_HourlyPrice = Annotated[float, Field(gt=0)]


class Price(Typed):
    """The price of an hour of computing, in `currency`.

    per_core_hour: of one core (a cloud's vCPU) · per_device_hour: of a whole rented
    machine; replaces the price per core if set.
    """

    def __init__(
        self, *, per_core_hour: _HourlyPrice, per_device_hour: _HourlyPrice | None, currency: str
    ) -> None:
        self._per_hour, self._unit = (
            (per_core_hour, "core") if per_device_hour is None else (per_device_hour, "device")
        )
        self.currency = currency

    def compute_per_million(self, images_per_second: float, *, cores: float = 1.0) -> float:
        """``1e6 / images_per_second / 3600 * price of an hour``, in `currency`.

        A price per core is multiplied by the number of cores in use.
        """
        return 1e6 / images_per_second / 3600 * self._per_hour * self._compute_billed_cores(cores)

    def describe_formula(self, images_per_second: float, *, cores: float = 1.0) -> str:
        """The formula of `compute_per_million` with its numbers."""
        billed = self._compute_billed_cores(cores)
        factor = "" if billed == 1 else f" x {billed:.2f} cores"
        price = self.compute_per_million(images_per_second, cores=cores)
        return (
            f"1e6 images / {images_per_second:,.1f} images/s / 3600 s/h{factor}"
            f" x {self._per_hour:g} {self.currency} per {self._unit}-hour"
            f" = {price:.4g} {self.currency} per million images"
        )

    def _compute_billed_cores(self, cores: float) -> float:
        """The number of cores to pay for; a partly used core costs a whole one."""
        return max(1.0, cores) if self._unit == "core" else 1.0
