"""What a million images cost, from how many a second there are and what an hour is paid
with.
"""

from typing import Annotated

from pydantic import Field

from kd_app.config import Typed

_Paid = Annotated[float, Field(gt=0)]


class Price(Typed):
    """per_core_hour: of one core (a cloud's vCPU), in `currency`. per_device_hour: of a
    machine that is rented whole; set, it is what counts.
    """

    def __init__(
        self, *, per_core_hour: _Paid, per_device_hour: _Paid | None, currency: str
    ) -> None:
        self._per_hour, self._unit = (
            (per_core_hour, "core") if per_device_hour is None else (per_device_hour, "device")
        )
        self.currency = currency

    def compute_per_million(self, images_per_second: float, *, cores: float = 1.0) -> float:
        """``1e6 / images_per_second / 3600 * price of an hour``, in the price's
        currency; at a price per core, times the cores that were in use.
        """
        return 1e6 / images_per_second / 3600 * self._per_hour * self._round_up_cores(cores)

    def describe_formula(self, images_per_second: float, *, cores: float = 1.0) -> str:
        """`compute_per_million` as it is computed, with its numbers."""
        used = self._round_up_cores(cores)
        times = "" if used == 1 else f" x {used:.2f} cores"
        return (
            f"1e6 images / {images_per_second:,.1f} images/s / 3600 s/h{times} x {self._per_hour:g}"
            f" {self.currency} per {self._unit}-hour ="
            f" {self.compute_per_million(images_per_second, cores=cores):.4g} {self.currency} per million"
            " images"
        )

    def _round_up_cores(self, cores: float) -> float:
        """One core is paid whole even where less of it was in use."""
        return max(1.0, cores) if self._unit == "core" else 1.0
