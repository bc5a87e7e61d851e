"""A wrong request is one paragraph that names the nearest right one; nothing is read,
and nothing is left behind.
"""

from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.data.module import ImageData
from kd_app.jobs.distill import distill
from kd_app.run.workspace import Workspace
from tests.commands.call import expect_refusal

WRONG = [
    # keys
    (
        "loss.soft_target.temprature=2",
        "no setting 'loss.soft_target.temprature'. Did you mean 'loss.soft_target.temperature'?",
    ),
    ("optimzer=sgd", "no setting 'optimzer'. Did you mean 'optimizer'?"),
    ("student.nam=x", "no setting 'student.nam'. Did you mean 'student.name'?"),
    ("data.split.tst=0.1", "Did you mean 'data.split.test'?"),
    ("data=folder data.source.chanels=1", "Did you mean 'data.source.channels'?"),
    ("teacher/optimizer=sgd", "no setting 'teacher/optimizer'. Did you mean 'teacher.optimizer'?"),
    (
        "loss.decoupled.alpha=1",
        "decoupled is not among the choices of loss=. Add it: 'loss=[...,decoupled]'",
    ),
    (
        "+loss.decoupled.alpha=1",
        "decoupled is not among the choices of loss=. Add it: 'loss=[...,decoupled]'",
    ),
    (
        "+loss.soft_target.bar=1",
        "SoftTarget has no setting 'bar'. Known: temperature, standardize.",
    ),
    ("lr=0.1", "Did you mean 'optimizer.lr' or 'teacher.optimizer.lr'?"),
    ("epochs=3", "Did you mean 'teacher.max_epochs' or 'trainer.max_epochs'?"),
    ("data.split.tst=0.1", "Settings of data.split: validation, test."),
    ("foo=1", "no setting 'foo'. Groups and settings: out, stages,"),
    ("data.source.x=1", "Settings of data.source: none."),
    ("+seed=1", "'+' adds a setting, but 'seed' already exists"),
    ("~foo", "'~' removes a setting, but 'foo' does not exist"),
    ("~seed=3", "'~seed=3' removes nothing: seed is 0"),
    ("~loss", "'~loss' removes nothing: loss has no such choice"),
    ("data@x=digits", "no group 'data@x' in this configuration. Did you mean data?"),
    ("+x@y=1", "no group 'x'. '--help' lists the groups"),
    ("+foo=1", "kd-distill has no setting 'foo'"),
    ("+sead=1", "kd-distill has no setting 'sead'. Did you mean 'seed'?"),
    ("+teacher.nam=x", "no setting 'teacher.nam'. Did you mean 'teacher.name'?"),
    ("+student.sed=1", "no setting 'student.sed'"),
    ("+trainer.max_epoch=1", "no setting 'max_epoch'. Did you mean 'max_epochs'?"),
    ("+data.split.tst=0.1", "no setting 'split.tst'"),
    (
        "+controls.labels_only.los=1",
        "no setting 'controls.labels_only.los'. Did you mean 'controls.labels_only.loss'?",
    ),
    ("+verdict.margn=1", "no setting 'margn'. Did you mean 'margin'?"),
    ("+logger.csv.foo=1", "Csv has no setting 'foo'"),
    (
        "++loss.soft_targt.temperature=1",
        "no choice of loss= 'soft_targt'. Did you mean 'soft_target'?",
    ),
    ("hydra.foo=1", "Hydra has no setting 'hydra.foo' in this configuration"),
    # choices
    ("data=fashion_mnst", "no data 'fashion_mnst'. Did you mean 'fashion_mnist'?"),
    ("optimizer=sgdd", "no optimizer 'sgdd'. Did you mean 'sgd'?"),
    ("loss=[soft_targt]", "no loss 'soft_targt'. Did you mean 'soft_target'?"),
    ("loss=[cross_entropy,feature_hnt]", "Did you mean 'feature_hint'?"),
    ("experiment=outputt", "no experiment 'outputt'. Did you mean 'output'?"),
    ("debug=fdrr", "Did you mean 'fdr'?"),
    ("logger=[wandbb]", "Did you mean 'wandb'?"),
    ("controls=[labels]", "Did you mean 'labels_only'?"),
    ("experiment=None", "no experiment 'None'. Use null for no choice"),
    ("loss=null", "'loss=null' chooses nothing. Expected the name of a choice"),
    ("teacher=null", "Choices of teacher=: ema, none, several, timm"),
    ("loss=[]", "The loss has no term"),
    ("loss.soft_target=null", "loss.soft_target=None is not a component"),
    # names of models, optimizers, stages
    ("student.name=resnet8x", "no student model 'resnet8x'. Did you mean 'resnet8x4'?"),
    ("teacher.name=resnet18.a1_in1kk", "Did you mean 'resnet18.a1_in1k'?"),
    ("teacher.name=null", "No teacher is named"),
    ("optimizer.name=adamwx", "no optimizer 'adamwx'. Did you mean 'adamw'?"),
    ("remake=[studnt]", "no stage to remake 'studnt'. Did you mean 'student'?"),
    (
        "teacher._target_=nowhere.Net",
        "teacher._target_='nowhere.Net' does not exist: No module named 'nowhere'",
    ),
    (
        "data.view._target_=builtins.dict",
        "ImageData: view={",
    ),
    ("loss.soft_target._target_=kd_app.losses.soft_target.SoftTargt", "attribute 'SoftTargt'"),
    # types and ranges
    ("trainer.max_epochs=abc", "max_epochs='abc' does not fit: expected a valid integer"),
    ("trainer.max_epochs=None", "None is read as text; write null for no value"),
    ("trainer.max_epochs=0", "max_epochs=0 does not fit: expected greater than or equal to 1"),
    (
        "trainer.limit_train_batches=0",
        "limit_train_batches=0 does not fit: expected greater than 0",
    ),
    (
        "loss.soft_target.temperature=-1",
        "temperature=-1 does not fit: expected greater than or equal to 0.01",
    ),
    ("loss.soft_target.schedule=warmpu", "no scheduler 'warmpu'. Did you mean 'warmup'?"),
    (
        "+loss.soft_target.schedule=0.5",
        "loss.soft_target.schedule=0.5 does not fit: expected a choice of the group scheduler",
    ),
    ("loss.soft_target.weight=-1", "loss.soft_target.weight=-1 does not fit"),
    ("loss.cross_entropy.smoothing=1", "smoothing=1 does not fit: expected less than 1"),
    (
        "loss.cross_entropy.class_weights=[1,2]",
        "class_weights has 2 entries for 10 classes",
    ),
    ("data.batch_size=0", "batch_size=0 does not fit"),
    ("data.image_size=100000", "image_size=100000 does not fit: expected less than or equal to"),
    ("student.image_size=100000", "image_size=100000 does not fit: expected less than or equal to"),
    (
        "data.num_workers=-1",
        "num_workers=-1 does not fit: expected greater than or equal to 0 or 'auto'",
    ),
    ("data.on_error=ignore", "on_error='ignore' does not fit: expected 'raise' or 'skip'"),
    ("data.split.test=1.5", "split.test=1.5 does not fit"),
    ("data.root=photos", "data.root=photos has no effect"),
    ("data=folder", "data.root is not set"),
    ("optimizer.lr=fast", "lr='fast' does not fit"),
    ("optimizer.kwargs.foo=1", "kwargs={'foo': 1}"),
    ("scheduler.warmup=2", "warmup=2 does not fit"),
    ("teacher.kwargs.foo=1", "unexpected keyword argument 'foo'"),
    ("teacher.max_epochs=-1", "teacher: max_epochs=-1 does not fit"),
    ("teacher.seed=x", "teacher: seed='x' does not fit"),
    ("teacher.optimizer.lr=-1", "lr=-1 does not fit"),
    ("teacher.pretrained=true", "timm has no weights for 'wrn_16_2'"),
    ("seed=-1", "seed=-1 does not fit"),
    ("seed=1.5", "seed=1.5 does not fit"),
    ("tags=foo", "tags='foo' does not fit: expected a valid list"),
    ("overwrite=maybe", "overwrite='maybe' does not fit: expected a valid boolean"),
    ("test=sometimes", "test='sometimes' does not fit: expected 'auto', 'always' or 'never'"),
    ("stages=", "stages='' is empty. Expected a path"),
    ("verdict.margin=0", "margin=0 does not fit"),
    (
        "robustness.corruptions=[fog]",
        "robustness: corruptions.0='fog' does not fit: expected 'gaussian_noise', 'gaussian_blur'",
    ),
    ("robustness=hard", "Did you mean 'standard'?"),
    ("verdict.metric=top5", "metric='top5' does not fit"),
    # what the parts need of each other
    ("teacher=none loss=[soft_target]", "The loss term soft_target needs a teacher"),
    ("loss=[cross_entropy]", "no loss term reads it"),
    # words that are none
    ("seed", "'seed' can't be read. Expected <setting>=<value>"),
    ("loss=[soft_target", "can't be read. Expected <setting>=<value>"),
    ("seed=${nowhere}", "seed refers to the setting 'nowhere' through ${...}, but there is none"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_request_is_answered_with_what_is_wrong_and_what_is_right(
    words: str, message: str
) -> None:
    with pytest.raises(RequestError) as raised:
        distill(compose_config("distill", words.split()))
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [*WRONG[::40], ("seed=0,1", "seed=0,1 gives several values to one run. Add -m")],
)
def test_the_command_says_it_on_stderr_with_exit_code_2(words: str, message: str) -> None:
    assert message in expect_refusal(*words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "trainer.precision=16-mixed trainer.accelerator=cpu",
            "trainer.precision=16-mixed is not supported on this device (cpu)",
        ),
        ("trainer.precision=fp8", "precision='fp8' does not fit: expected 'auto', '32-true'"),
        ("trainer=cpu trainer.devices=4096", "trainer.devices=4096, but this machine has"),
        ("trainer=mps", "trainer.accelerator=mps, but this machine has no such device"),
    ],
)
def test_what_the_machine_has_not_is_refused_by_name(words: str, message: str) -> None:
    assert message in expect_refusal(*words.split())


@pytest.mark.parametrize(
    "wrong",
    [
        "loss.soft_target.temperature=-1",
        "teacher.optimizer.lr=-1",
        "verdict.margin=-1",
        "+logger.csv.foo=1",
        "seed=x",
    ],
)
def test_the_request_is_checked_before_data_or_weights_are_looked_for(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch(*_: object, **__: object) -> None:
        raise AssertionError("too early")

    monkeypatch.setattr(ImageData, "list", touch)
    monkeypatch.setattr(Workspace, "__init__", touch)
    monkeypatch.setattr("kd_app.models.create.create", touch)
    message = expect_refusal(
        "data=folder",
        "data.root=/nonexistent",
        "teacher.name=resnet18.a1_in1k",
        "logger=[csv]",
        wrong,
    )
    assert "does not fit" in message or "no setting" in message
    assert "nonexistent" not in message


def test_a_missing_or_wrong_setting_of_kd_evaluate_is_named() -> None:
    assert "out has no value, and the command needs one" in expect_refusal(
        "run=x", command="kd-evaluate"
    )
    assert "needs to know what to measure: run=" in expect_refusal("out=y", command="kd-evaluate")
    assert "no setting 'rnu'. Did you mean 'run'?" in expect_refusal(
        "rnu=x", "out=y", command="kd-evaluate"
    )
    assert "split='tests' does not fit: expected 'auto', 'train'" in expect_refusal(
        "run=x", "out=y", "split=tests", command="kd-evaluate"
    )
    assert "There is no folder 'nowhere'. Expected the folder of a run" in expect_refusal(
        "run=nowhere", "out=y", command="kd-evaluate"
    )
