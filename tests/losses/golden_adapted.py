"""The golden cases of the terms with trained parts: heads, branches, a memory, a
projector.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kd_app.losses.ofa import PatchMerging
from kd_app.models.heads import Head
from kd_app.models.outputs import Outputs, Tokens
from tests.losses.golden_result import NO_LABELS, Arrays, Case, GoldenResult, ValueOf, own_state
from tests.losses.samples import batch, logits, make, maps


def _two_heads(x: Arrays) -> Outputs:
    """Return a student whose heads return their halves of the embedding unchanged."""
    classes = x["logits_s"].shape[1]
    head = Head((nn.Identity(), nn.Identity()), (classes, classes), convolutional=False)
    return Outputs(embedding=torch.cat((x["logits_s"], x["logits_s2"]), dim=1), classifier=head)


def _token(term: str, **settings: float) -> ValueOf:
    def compare(x: Arrays) -> Tensor:
        value: Tensor = make(term, **settings)(
            _two_heads(x), logits(x["logits_t"]), batch(x["target"])
        )
        return value

    return compare


def _divide_by_classes(x: Arrays) -> Tensor:
    """DeiT's code divides the teacher's part by batch and classes."""
    labels, soft = (_token("soft_token", label=label)(x) for label in (1.0, 0.0))
    return 0.9 * labels + 0.1 * soft / x["logits_t"].shape[1]


def _ofa(x: Arrays, *stages: str, **settings: Any) -> tuple[Any, Outputs]:
    student = Outputs(logits=x["logits_s"], features=[x[name] for name in stages])
    return make("ofa", **settings), student


def _without_branches(x: Arrays) -> Tensor:
    """Without maps, only the student's logits count."""
    term, student = _ofa(x, exponent=1.0)
    term.branches = nn.ModuleList()
    value: Tensor = term(student, logits(x["logits_t"].detach()), batch(x["target"]))
    return value


def _branches(x: Arrays) -> GoldenResult:
    term, student = _ofa(x, "stage1", "stage2", "stage3", "stage4", width=48)
    teacher = logits(x["logits_t"].detach())
    term.build(student, teacher)
    term.double()
    parameters: dict[str, nn.Parameter] = {}
    for number in range(1, 5):
        branch = term.branches[4 - number]
        state = own_state(x, f"projector.{number}.")
        ours = {
            theirs: key
            for key, theirs in zip(branch.state_dict(), sorted(state, key=_in_order), strict=True)
        }
        branch.load_state_dict({ours[key]: value for key, value in state.items()}, strict=True)
        theirs = {key: name for name, key in ours.items()}
        parameters |= {
            f"projector.{number}.{theirs[key]}": parameter
            for key, parameter in branch.named_parameters()
        }
    label = make("cross_entropy")(logits(x["logits_s"]), Outputs(), batch(x["target"]))
    return GoldenResult(label + term(student, teacher, batch(x["target"])), parameters)


def _in_order(key: str) -> tuple[tuple[int, ...], int]:
    """Sort key: module by module, with the tensors of each in torch's order."""
    *modules, tensor = key.replace("op.", "").split(".")
    return tuple(map(int, modules)), (
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ).index(tensor)


def _branches_of_tokens(x: Arrays) -> GoldenResult:
    """A ViT of 4 x 4 patches with a classified class token."""
    stages = [x[f"stage{number}"] for number in range(1, 5)]
    student = Outputs(
        logits=x["logits_s"],
        features=[stage[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for stage in stages],
        tokens=[Tokens(stage[:, 1:], stage[:, :1]) for stage in stages],
    )
    term, teacher = make("ofa", class_token=True), logits(x["logits_t"].detach())
    term.build(student, teacher)
    term.double()
    parameters: dict[str, nn.Parameter] = {}
    for number, branch in zip(range(4, 0, -1), term.branches, strict=True):
        names = {"blocks.": f"projector.{number}.1.", "classifier.": f"projector.{number}.3."}
        state = {
            ours + key: value
            for ours, theirs in names.items()
            for key, value in own_state(x, theirs).items()
        }
        branch.load_state_dict(state, strict=True)
        for ours, theirs in names.items():
            parameters |= {
                key.replace(ours, theirs, 1): p
                for key, p in branch.named_parameters()
                if key.startswith(ours)
            }
    label = make("cross_entropy")(logits(x["logits_s"]), Outputs(), batch(x["target"]))
    return GoldenResult(label + term(student, teacher, batch(x["target"])), parameters)


def _merging(x: Arrays) -> GoldenResult:
    merging = PatchMerging(32, 24).double()
    merging.load_state_dict(own_state(x, "pm."))
    grid = x["tokens"].transpose(1, 2).unflatten(2, (4, 4))
    return GoldenResult(
        merging(grid).square().mean(),
        {f"pm.{name}": parameter for name, parameter in merging.named_parameters()},
    )


def build_crd_case(x: Arrays) -> tuple[Any, Outputs, Outputs]:
    """Return the term with the reference's maps, memories and draws, and the outputs of
    both models.
    """
    term = make("crd", width=16, negatives=12)
    ours, theirs = Outputs(embedding=x["pool_s"]), Outputs(embedding=x["pool_t"].detach())
    term.images = torch.arange(40)
    term.build(ours, theirs)
    term.double()
    term.load_state_dict(
        {
            **{
                f"embed_{side}.{key}": value
                for side in "st"
                for key, value in own_state(x, f"crd.embed_{side}.linear.").items()
            },
            **{
                f"memory_{side}": x[f"sd/crd.contrast.memory_v{number}"].clone()
                for side, number in (("s", 1), ("t", 2))
            },
            "partition": torch.zeros(2),
            "classes": -1 - torch.arange(40),
        }
    )
    term._draw_negatives = lambda *_: x["in/contrast_idx"][:, 1:].long()
    return term, ours, theirs


def _contrast(x: Arrays) -> GoldenResult:
    numbered = batch(x["in/idx"].long())
    numbered.index = numbered.target
    term, ours, theirs = build_crd_case(x)
    value = term(ours, theirs, numbered)
    names = {
        f"crd.embed_{side}.linear.{key}": p
        for side in "st"
        for key, p in getattr(term, f"embed_{side}").named_parameters()
    }
    return GoldenResult(value, names)


def _reuse(x: Arrays) -> GoldenResult:
    head = nn.Linear(24, 10).double().requires_grad_(False)
    head.load_state_dict(own_state(x, "cls_t."))
    teacher = Outputs(
        features=[x["feat_t"].detach()],
        embedding=x["feat_t"].detach().mean((2, 3)),
        classifier=head,
    )
    term = make("simkd")
    term.build(maps(x["feat_s"]), teacher)
    term.double()
    # The reference always has a ReLU at the end.
    term.projector.transfer.append(nn.ReLU())
    term.projector.transfer.load_state_dict(own_state(x, "simkd.transfer."), strict=True)
    value = term(maps(x["feat_s"]), teacher, NO_LABELS)
    return GoldenResult(
        value,
        {
            f"simkd.transfer.{name}": parameter
            for name, parameter in term.projector.transfer.named_parameters()
        },
    )


ADAPTED: dict[str, Case] = {
    **dict.fromkeys(("deit_hard", "timm_token_task_hard"), _token("hard_token")),
    "timm_token_task_soft": _token("soft_token"),
    "ofa_loss_eps1": _without_branches,
    "ofa_full_cnn_student": _branches,
    "ofa_full_vit_student": _branches_of_tokens,
    "ofa_patch_merging": _merging,
    "crd_repdistiller": _contrast,
    "simkd_same": _reuse,
}
ADAPTED_DEVIATIONS: dict[str, Case] = {"deit_soft": _divide_by_classes}
ADAPTED_REGULAR: dict[str, Case] = {"deit_soft": _token("soft_token", label=0.9)}
