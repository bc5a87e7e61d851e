from kd_app.data.chained import Chained


def test_loaders_are_read_one_after_the_other() -> None:
    chained = Chained([[1, 2], [], [3]])
    assert len(chained) == 3
    assert [*chained] == [1, 2, 3]
    assert [*chained] == [1, 2, 3]
