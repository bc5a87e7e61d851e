"""The input of a model, and how image files are decoded for it."""

from kd_app.config import Decoding, InputSpec, bound_side, choose_decoding


def test_images_are_decoded_large_enough_for_the_crops_of_the_largest_model() -> None:
    assert bound_side([224, 0]) == 320
    assert bound_side([224, 384]) == 442


def test_a_model_from_elsewhere_decodes_its_own_channels_and_its_longer_side() -> None:
    assert choose_decoding(InputSpec(1, 48, 20, (0.5,), (0.5,))) == Decoding(1, 320)
    wide = InputSpec(3, 224, 384, (0.5,) * 3, (0.5,) * 3)
    assert choose_decoding(wide) == Decoding(3, 442)
