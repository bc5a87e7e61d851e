"""The texts of ``--help`` and ``--version``.

The texts are read from ``conf/`` without Hydra: importing and composing take ten times
as long, and Hydra's help prints the whole configuration.
"""

import re
from collections.abc import Iterator, Sequence
from textwrap import shorten, wrap
from typing import Any

import yaml

from kd_app import __version__
from kd_app.config.paths import CONF, list_choices

_WIDTH, _LINES = 100, 40
_SETTING = re.compile(r"^(\w+):([^#\n]*)# (.*)$", re.MULTILINE)

EXAMPLES = {
    "distill": (
        "kd-distill out=runs/demo",
        "kd-distill data=folder data.root=photos teacher.name=resnet50.a1_in1k out=runs/photos",
        "kd-distill 'loss=[cross_entropy,dist]' trainer.max_epochs=20 -m seed=0,1,2",
    ),
    "check": (
        "kd-check",
        "kd-check data=folder data.root=photos teacher.name=resnet50.a1_in1k",
        "kd-check 'loss=[cross_entropy,review]' check.seconds=10",
    ),
    "evaluate": (
        "kd-evaluate run=runs/fm out=runs/fm-again",
        "kd-evaluate model=runs/fm/export/model.onnx data=folder data.root=new out=runs/fm-new",
        "kd-evaluate 'cascade=[runs/fm/export/model.onnx,runs/fm/teacher]' out=runs/fm-cascade",
    ),
    "compress": (
        "kd-compress run=runs/fm 'steps=[prune,finetune]' prune.macs=0.5 out=runs/fm-half",
        "kd-compress run=runs/fm 'steps=[quantize]' out=runs/fm-int8",
        "kd-compress run=runs/fm 'steps=[quantize]' quantize.epochs=2 out=runs/fm-qat",
    ),
    "export": (
        "kd-export run=runs/fm",
        "kd-export run=runs/fm role=both",
        "kd-export run=runs/fm 'formats=[onnx,onnx_int8,executorch]'",
    ),
    "predict": (
        "kd-predict model=runs/fm/export/model.onnx images=photos out=labels.csv",
        "kd-predict model=runs/fm images=photos top=3 out=labels.parquet",
        "kd-predict model=runs/fm-cascade/cascade.json images=list.csv out=labels.csv",
    ),
    "report": (
        "kd-report 'runs=[runs/fm]'",
        "kd-report 'runs=[runs/a,runs/seed*]' out=report",
        "kd-report stages=runs/.stages",
    ),
}


def find_help(primary: str, arguments: Sequence[str]) -> str | None:
    """The text for ``--help`` or ``--version`` in `arguments`; None without these
    flags.
    """
    if {"-h", "--help"} & set(arguments):
        return format_help(primary)
    return f"kd-{primary} {__version__}" if "--version" in arguments else None


def format_help(primary: str) -> str:
    """The purpose of a command, three examples, groups, settings and further flags, in
    at most 40 lines.
    """
    command = f"kd-{primary}"
    defaults = dict(_list_defaults(primary))
    groups = [group for group in sorted(defaults) if list_choices(group)]
    lists = [group for group in groups if isinstance(defaults[group], list)]
    head = [_read(primary).splitlines()[0].removeprefix("# "), "", "Examples:"]
    head += [f"  {example}" for example in EXAMPLES[primary]]
    if groups:
        note = f"; {', '.join(lists)}: one or several, as '{lists[-1]}=[a,b]'" if lists else ""
        head += ["", f"Groups (<group>=<choice>{note}):"]
        head += [_describe_group(group) for group in groups]
    if "loss" in groups:
        # a command whose sweeps may be searches
        head += [_describe_group(group) for group in ("hydra/launcher", "hydra/sweeper")]
    tail = [
        "",
        f"  {command} --cfg job ...    print the whole configuration",
        f"  {command} -m ...           a sweep: <setting>=a,b runs one trial for each value",
        f"  {command} --hydra-help     flags of Hydra: --config-dir, --shell-completion ...",
        "  Settings and --config-dir are trusted like a script; files that are read run no code.",
        "  README.md and docs/ explain the methods, the controls and the verdict.",
    ]
    settings = list(_list_settings(primary, groups))
    room = _LINES - len(head) - len(tail) - 2
    if len(settings) <= room:
        middle = [_describe(name, comment) for name, comment in settings]
    else:
        names = ", ".join(name for name, _ in settings)
        middle = wrap(names, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*head, "", "Settings (<setting>=<value>):", *middle, *tail])


def _read(name: str) -> str:
    return (CONF / f"{name}.yaml").read_text(encoding="utf-8")


def _list_defaults(primary: str) -> Iterator[tuple[str, Any]]:
    """Yield the groups of a primary configuration and of its base configurations, with
    the default choices.
    """
    for default in yaml.safe_load(_read(primary))["defaults"]:
        if isinstance(default, dict):
            yield from default.items()
        elif default != "_self_":
            yield from _list_defaults(default)


def _list_settings(primary: str, groups: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the settings of a primary configuration outside of groups, with the
    trailing comments.
    """
    for default in yaml.safe_load(_read(primary))["defaults"]:
        if isinstance(default, str) and default not in ("_self_", "hydra_defaults"):
            yield from _list_settings(default, groups)
    for name, value, comment in _SETTING.findall(_read(primary)):
        if name not in groups:
            yield name, f"{'(required) ' if '???' in value else ''}{comment}"


def _describe(name: str, text: str) -> str:
    return f"  {name:<15} {shorten(text, _WIDTH - 18, placeholder=' ...')}"


def _describe_group(group: str) -> str:
    names = list_choices(group)
    more = f" ... ({len(names)})"
    return f"  {group:<15} {shorten(', '.join(names), _WIDTH - 18, placeholder=more)}"
