"""Fine-tuning changes only the epochs and the learning rate of the run's recipe."""

from dataclasses import replace

from torch import nn

from kd_app.compression.finetune import Finetune
from kd_app.config.compose import compose_config
from kd_app.specs.spec import build_spec

STUDENT = nn.Linear(1, 1)


def test_null_keeps_the_epochs_and_the_resolved_rate_of_the_run() -> None:
    recipe = build_spec(compose_config("distill", ["trainer.max_epochs=7"])).recipe
    adapted = Finetune(max_epochs=None, lr=None).adapt_recipe(recipe, STUDENT, from_random=True)
    lr = recipe.make_optimizer().resolve_lr(STUDENT, from_random=True)
    assert adapted == replace(recipe, optimizer={**recipe.optimizer, "lr": lr})
    assert adapted.max_epochs == 7


def test_epochs_and_rate_can_be_set() -> None:
    recipe = build_spec(compose_config("distill", [])).recipe
    adapted = Finetune(max_epochs=3, lr=0.5).adapt_recipe(recipe, STUDENT, from_random=True)
    assert (adapted.max_epochs, adapted.optimizer["lr"]) == (3, 0.5)
    assert adapted.loss == recipe.loss


def test_finetuning_recovers_what_the_step_before_lost() -> None:
    step = Finetune(max_epochs=None, lr=None)
    assert (step.recovers, step.is_final) == (True, False)
