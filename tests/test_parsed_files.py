from unittest.mock import patch

from hydra._internal.config_repository import ConfigRepository

from kd_app.config.compose import compose_config
from tests import parsed_files

WORDS = ["data=folder", "data.root=photos", "loss=[cross_entropy,soft_target]", "debug=fdr"]


def test_files_that_are_parsed_already_compose_like_those_that_are_read_again() -> None:
    compose_config("distill", ["optimizer=sgd", "optimizer.lr=7", "teacher.max_epochs=9"])
    kept = compose_config("distill", WORDS)
    with patch.object(ConfigRepository, "load_config", parsed_files._load_config):
        read = compose_config("distill", WORDS)
    assert kept == read
    assert ConfigRepository.load_config is parsed_files._load_parsed
