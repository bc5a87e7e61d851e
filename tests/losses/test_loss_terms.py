"""Properties of every ``conf/loss/*.yaml`` and its term. New methods are covered
automatically.
"""

import copy
import inspect
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch

from kd_app.config import RequestError
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.models.outputs import Outputs
from tests.losses.samples import (
    CLASSES,
    CONF,
    TERMS,
    build_term,
    class_of,
    labels,
    leaf,
    make,
    map_tensors,
    pair,
    settings_of,
    tensors,
)

every_term = pytest.mark.parametrize("name", TERMS)


def make_leaves(outputs: Outputs) -> Outputs:
    """Return the outputs as leaves with gradient."""
    return map_tensors(outputs, leaf)


@every_term
def test_the_yaml_names_a_loss_term_in_the_module_of_the_same_name(name: str) -> None:
    cls = class_of(name)
    assert issubclass(cls, LossTerm)
    assert cls.__module__ == f"kd_app.losses.{name}"


@every_term
def test_the_yaml_has_a_weight_and_exactly_the_settings_of_the_signature(name: str) -> None:
    settings = settings_of(name)
    parameters = dict(inspect.signature(class_of(name)).parameters)
    assert set(settings) == {"_target_", "weight", *parameters}
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters.values())
    assert settings["weight"] > 0


@every_term
def test_the_yaml_describes_every_setting(name: str) -> None:
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert [line for line in lines[1:] if not line.startswith("#") and " # " not in line] == [
        f"{name}:",
        f"  _target_: {settings_of(name)['_target_']}",
    ]


@every_term
def test_it_declares_its_inputs_and_level(name: str) -> None:
    cls = class_of(name)
    assert cls.reads
    assert cls.reads <= {field.name for field in fields(Outputs)}
    assert cls.level in get_args(Level)
    assert cls.needs_teacher is (cls.level != "label")


@every_term
def test_a_misspelt_setting_is_refused_and_the_right_one_named(name: str) -> None:
    setting = next(key for key in settings_of(name) if key not in ("_target_", "weight"))
    with pytest.raises(RequestError, match=f"no setting '{setting}z'.*Did you mean '{setting}'"):
        make(name, **{f"{setting}z": 1})


@every_term
def test_settings_belong_to_the_instance_and_not_to_the_class(name: str) -> None:
    """Fault 9 of other toolkits: settings on the class are shared by two instances."""
    settings = set(vars(make(name))) & set(settings_of(name))
    assert not settings & set(vars(class_of(name)))


@every_term
def test_it_gives_one_number_and_a_gradient_to_the_student_and_to_every_adapter(name: str) -> None:
    student, teacher = pair(term=name)
    student = make_leaves(student)
    term = build_term(name, student, teacher)
    value = term(student, teacher, labels(5))
    assert value.shape == ()
    assert value > 0
    value.backward()
    grads = [x.grad for x in tensors(student, term.reads) if x.grad is not None]
    assert grads
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters())


def list_variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every term with its own settings, and with its parts turned on and off."""
    weights = {
        "decoupled": ("alpha", "beta"),
        "dist": ("beta", "gamma"),
        "nkd": ("gamma",),
        "rkd": ("distance", "angle"),
    }
    for name in TERMS:
        values: dict[str, tuple[Any, ...]] = dict.fromkeys(weights.get(name, ()), (0.0, 1.0))
        if "standardize" in settings_of(name):
            values["standardize"] = (False, True)
        for each in itertools.product(*values.values()):
            yield name, dict(zip(values, each, strict=True))


@pytest.mark.parametrize(("images", "classes"), [(5, 2), (5, 3), (1, 6), (2, 6)])
def test_a_term_has_a_gradient_if_and_only_if_it_is_accepted(
    images: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_scope = LossTerm.check_scope
    monkeypatch.setattr(LossTerm, "check_scope", lambda self, **numbers: "")
    for name, settings in list_variants():
        if name == "softmax_regression" and images == 1:
            # Without ReLU, which 'auto' chooses here, its batch norm erases one image.
            settings |= {"activation": "relu"}
        try:
            check_scope(make(name, **settings), num_classes=classes, num_images=images)
            is_accepted = True
        except RequestError:
            is_accepted = False
        student, teacher = pair(images, term=name, classes=classes)
        student = make_leaves(student)
        term = build_term(name, student, teacher, **settings)
        term(student, teacher, labels(images, classes)).backward()
        grads = [x.grad for x in tensors(student, term.reads) if x.grad is not None]
        largest = max((float(grad.abs().max()) for grad in grads), default=0.0)
        assert (largest > 1e-6) is is_accepted, (name, settings, largest)


@every_term
def test_a_small_step_of_the_student_down_the_gradient_lowers_it(name: str) -> None:
    student, teacher = pair(term=name)
    student = make_leaves(student)
    term = build_term(name, student, teacher)
    value = copy.deepcopy(term)(student, teacher, labels(5))
    value.backward()
    length = math.sqrt(
        sum(
            x.grad.square().sum().item() for x in tensors(student, term.reads) if x.grad is not None
        )
    )
    stepped = map_tensors(
        student, lambda x: x if x.grad is None else (x - 1e-3 / length * x.grad).detach()
    )
    assert term(stepped, teacher, labels(5)) < value


@every_term
def test_the_order_of_the_images_does_not_matter(name: str) -> None:
    student, teacher = pair(term=name)
    term = build_term(name, student, teacher)
    order = torch.tensor([3, 0, 4, 1, 2])
    batch, moved = labels(5), labels(5)
    moved.target, moved.index = batch.target[order], batch.index[order]
    ours, theirs = (map_tensors(outputs, lambda x: x[order]) for outputs in (student, teacher))
    torch.testing.assert_close(
        copy.deepcopy(term)(ours, theirs, moved), term(student, teacher, batch), rtol=1e-10, atol=0
    )


@every_term
def test_single_precision_agrees_with_double(name: str) -> None:
    student, teacher = pair(term=name)
    double = build_term(name, student, teacher)(student, teacher, labels(5))
    ours, theirs = (map_tensors(outputs, torch.Tensor.float) for outputs in (student, teacher))
    single = build_term(name, ours, theirs)(ours, theirs, labels(5))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=0)


@every_term
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_a_single_precision_value_and_a_finite_gradient(
    name: str, dtype: torch.dtype
) -> None:
    """Fault 11 of other toolkits: NaN gradients, or none, in half precision."""
    halves = [map_tensors(outputs, lambda x: x.to(dtype)) for outputs in pair(term=name)]
    student = make_leaves(halves[0])
    ours, theirs = student.to_float32(), halves[1].to_float32()
    term = build_term(name, ours, theirs)
    value = term(ours, theirs, labels(5))
    value.backward()
    assert value.dtype == torch.float32
    grads = [x.grad for x in tensors(student, term.reads) if x.grad is not None]
    assert grads
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


@every_term
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_computed_in_single_precision(
    name: str, dtype: torch.dtype
) -> None:
    (ours, theirs), batch = (
        (map_tensors(outputs, lambda x: x.to(dtype)) for outputs in pair(term=name)),
        labels(5),
    )
    single = [map_tensors(outputs, torch.Tensor.float) for outputs in (ours, theirs)]
    terms = DistillationLoss({name: build_term(name, *single)}, {name: 1.0})
    torch.testing.assert_close(
        copy.deepcopy(terms)(ours, theirs, batch)[0], terms(*single, batch)[0], rtol=1e-6, atol=0
    )


@every_term
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
@pytest.mark.parametrize("images", [1, 5])
def test_value_and_gradient_are_finite_for_extreme_outputs(
    name: str, scale: float, images: int
) -> None:
    extreme, teacher = (
        map_tensors(outputs, torch.Tensor.float) for outputs in pair(images, scale, term=name)
    )
    usual = map_tensors(pair(images, term=name)[0], torch.Tensor.float)
    for ours, theirs in (
        (extreme, teacher),
        (usual, teacher),
        (extreme, map_tensors(teacher, torch.neg)),
    ):
        student = make_leaves(ours)
        term = build_term(name, student, theirs)
        value = term(student, theirs, labels(images))
        value.backward()
        assert value.isfinite()
        assert all(
            x.grad.isfinite().all()
            for x in (*tensors(student, term.reads), *term.parameters())
            if x.grad is not None
        )


@every_term
def test_a_refused_pair_gets_a_reason_and_three_alternatives(name: str) -> None:
    term, bare = make(name), Outputs(logits=torch.randn(2, CLASSES))
    if term.reads != {"logits"}:
        with pytest.raises(RequestError, match=f"^{name}") as raised:
            term.build(bare, bare)
        assert len(set(re.findall(r"\w+", str(raised.value))) & set(TERMS) - {name}) >= 3
    else:
        term.build(bare, bare)


@every_term
def test_its_state_restores_its_adapters(name: str) -> None:
    student, teacher = pair(term=name)
    term = build_term(name, student, teacher)
    assert {key for key, _ in term.named_parameters()} <= set(term.state_dict())
    other = copy.deepcopy(term)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(term.state_dict(), strict=True)
    assert torch.equal(other(student, teacher, labels(5)), term(student, teacher, labels(5)))
