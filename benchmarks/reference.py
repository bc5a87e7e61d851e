"""Reference pages of the docs: settings from the comments in ``conf/``, results from
their schema. ``python -m benchmarks.reference``, or ``make docs``.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_app.config.paths import CONF
from kd_app.reporting.results import Results
from kd_app.specs.loss_choice import list_terms

PAGES = Path(__file__).parents[1] / "docs" / "reference"
COMMANDS = ("distill", "check", "evaluate", "compress", "export", "predict", "report")
HIDDEN = ("_convert_", "_partial_", "_recursive_")
BOUNDS = ("_low", "_high")
WRITTEN = "<!-- Written by `python -m benchmarks.reference`, a part of `make docs`. -->"


@dataclass(frozen=True)
class Setting:
    """One key of a YAML file: dotted name, default as written, and comment."""

    key: str
    default: str
    meaning: str


@dataclass(frozen=True)
class ConfigFile:
    """One file of ``conf/``: head comment, defaults list, and settings."""

    about: str
    is_global: bool
    defaults: tuple[Any, ...]
    settings: tuple[Setting, ...]


def parse_config(text: str) -> ConfigFile:
    """Read the settings of a YAML file together with the comments that explain them."""
    lines = text.splitlines()
    head: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").rstrip())
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    content = yaml.safe_load(text) or {}
    settings = _parse_mapping(root, lines, len(head)) if isinstance(root, yaml.MappingNode) else ()
    return ConfigFile(
        about=_render_head([line for line in head if "@package" not in line]),
        is_global=" @package _global_" in head,
        defaults=tuple(content.get("defaults", ())),
        settings=tuple(
            setting for setting in settings if setting.key.split(".")[0] not in ("defaults",)
        ),
    )


def _render_head(lines: Sequence[str]) -> str:
    """Return a head comment as Markdown. Indented commands become a code block. The
    notes about a loss's paper are left out: they are on the methods page.
    """
    parts: list[str] = []
    for line in lines:
        if line.startswith(" Paper: "):
            break
        if re.match(r"   *(kd-|for |wandb )", line):
            if not parts or not parts[-1].startswith("```"):
                parts.append("```bash")
            parts[-1] += f"\n{line.strip()}"
        elif parts and not parts[-1].startswith("```"):
            parts[-1] += f" {line.strip()}"
        else:
            parts.append(line.strip())
    return "\n\n".join(
        f"{part}\n```" if part.startswith("```") else _sentence(part) for part in parts if part
    )


def _parse_mapping(
    node: yaml.MappingNode, lines: Sequence[str], head: int, prefix: str = ""
) -> Iterator[Setting]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        meaning = _parse_comment(key if is_block else value, key.start_mark.line, lines, head)
        if key.value in HIDDEN or (key.value == "_target_" and not meaning):
            continue
        if is_block and isinstance(value, yaml.MappingNode):
            if meaning:
                yield Setting(name, "", meaning)
            yield from _parse_mapping(value, lines, head, f"{name}.")
        elif is_block:
            yield Setting(name, f"{len(value.value)} entries", meaning)
        else:
            yield Setting(name, f"`{_source(value, lines)}`", meaning)


def _source(node: yaml.Node, lines: Sequence[str]) -> str:
    """Return the text of a value as written, on one line."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column].strip() or "null"
    parts = [lines[start.line][start.column :], *lines[start.line + 1 : end.line]]
    parts.append(lines[end.line][: end.column])
    return " ".join(re.sub(r"\s#\s.*", "", part).strip() for part in parts).strip()


def _parse_comment(node: yaml.Node, first: int, lines: Sequence[str], head: int) -> str:
    """Return the comment of one key: lines above, the end of the line, and lines below
    that continue at the same column.
    """
    above: list[str] = []
    for number in range(first - 1, head - 1, -1):
        line = lines[number]
        if not line.lstrip().startswith("#") or _continues(number, lines):
            break
        above.insert(0, line.strip().removeprefix("#").strip())
    last = node.end_mark.line
    if last >= len(lines):
        return " ".join(above)
    match = re.match(r"\s*:?\s*#\s?(.*)", lines[last][node.end_mark.column :])
    if not match:
        return " ".join(above)
    trailing = [match[1].strip()]
    for line in lines[last + 1 :]:
        if not line.lstrip().startswith("#") or _column(line) != _column(lines[last]):
            break
        trailing.append(line.strip().removeprefix("#").strip())
    return " ".join([*above, *trailing])


def _continues(number: int, lines: Sequence[str]) -> bool:
    """Whether a comment line continues the comment at the end of an earlier line."""
    while number > 0 and lines[number].lstrip().startswith("#"):
        if _column(lines[number]) != _column(lines[number - 1]):
            return False
        number -= 1
    return "#" in lines[number]


def _column(line: str) -> int:
    """Return the column of a line's comment, or -1."""
    if line.lstrip().startswith("#"):
        return line.index("#")
    match = re.search(r"\s#\s", line)
    return match.start() + 1 if match else -1


def render_config() -> str:
    """Render every group of ``conf/`` with its choices, and a table of the settings of
    each choice.
    """
    folders = sorted({path.parent for path in CONF.glob("*/**/*.yaml")})
    groups = {folder.relative_to(CONF).as_posix(): folder for folder in folders}
    parts = [
        "# Settings",
        WRITTEN,
        "Settings are Hydra groups and keys. Choose a group's file with `group=choice`, several"
        " with `'group=[a,b]'`, and change one setting with `group.key=value`. `null` means: not"
        " set. The settings that belong to one command alone, such as `out=` and `seed=`, are in"
        " [Commands](commands.md). `kd-distill --cfg job` prints the settings of a run.",
        "| group | choices |\n|---|---|",
    ]
    parts[-1] += "".join(
        f"\n| [`{group}`](#{_slug(group)}) | {_choices(folder)} |"
        for group, folder in groups.items()
    )
    for group, folder in groups.items():
        parts.append(f"## {group}")
        for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem.strip("_")):
            parts += _render_choice(group, path)
    return "\n\n".join(parts) + "\n"


def _choices(folder: Path) -> str:
    names = [path.stem for path in sorted(folder.glob("*.yaml"))]
    return ", ".join(f"`{name}`" for name in names if not name.startswith("_"))


def _slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _render_choice(group: str, path: Path) -> list[str]:
    config = parse_config(path.read_text(encoding="utf-8"))
    name = path.stem.lstrip("_")
    parts = [f"### {group}: {name}{' (shared)' if name != path.stem else ''}"]
    if config.about:
        parts.append(config.about)
    if group == "loss" and name in list_terms():
        parts.append(f"Formula, paper and cost: [Methods](../methods.md#{path.stem}).")
    parts += _render_defaults(config.defaults, group)
    prefix = "" if config.is_global else group.replace("/", ".") + "."
    return parts + _render_table(config.settings, prefix)


def _render_defaults(defaults: Sequence[Any], group: str) -> list[str]:
    """Describe the defaults list of a file in at most two sentences."""
    bases = [f"`{default.lstrip('_')}`" for default in defaults if isinstance(default, str)]
    choices = []
    for default in defaults:
        if isinstance(default, dict):
            ((key, value),) = default.items()
            name, _, package = key.removeprefix("override ").lstrip("/").partition("@")
            value = f"[{','.join(value)}]" if isinstance(value, list) else value
            choices.append(f"`{f'{group}.' if package else ''}{name}={value}`")
    bases = [base for base in bases if base != "`self_`"]
    sentences = [f"Starts from {', '.join(bases)}."] if bases else []
    sentences += [f"Chooses {', '.join(choices)}."] if choices else []
    return [" ".join(sentences)] if sentences else []


def _render_table(settings: Sequence[Setting], prefix: str = "") -> list[str]:
    rows = [
        f"| `{prefix}{setting.key}` | {_cell(setting.default)} | {_cell(setting.meaning)} |"
        for setting in settings
    ]
    return ["\n".join(["| key | default | meaning |", "|---|---|---|", *rows])] if rows else []


def _cell(text: str) -> str:
    return _escape(text).replace("|", "\\|")


def _sentence(text: str) -> str:
    return _escape(text if text.endswith((".", "!", "?", ":")) else f"{text}.")


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def _escape(text: str) -> str:
    """Escape text that Markdown would read as HTML or emphasis, outside of code."""
    parts = text.split("`")
    parts[::2] = [
        re.sub(r"(?<!\w)_target_(?!\w)", "`_target_`", re.sub(r"<(?=[\w/])", "&lt;", part))
        for part in parts[::2]
    ]
    return "`".join(parts)


def render_commands() -> str:
    """Render the settings of each command that belong to no group."""
    parts = [
        "# Commands",
        WRITTEN,
        "Every command is a Hydra application. `--help` lists its groups, `--cfg job` prints its"
        " settings, and `-m` runs one trial for each combination of values. Quote what has"
        " brackets: `'loss=[cross_entropy,soft_target]'`. The settings of groups are in"
        " [Settings](config.md).",
        "| exit code | meaning |\n|---|---|\n"
        "| 0 | done, warnings included |\n"
        "| 1 | the run failed: disk full, a loss that is not finite, a step that lost too much |\n"
        "| 2 | the request was wrong, or `kd-check` refused it |\n"
        "| 130 | Ctrl-C |\n"
        "| 143 | SIGTERM; another signal: 128 + its number |",
        "A wrong request is one paragraph on stderr: what was wrong, what was expected, and how to"
        " fix it.",
    ]
    for command in COMMANDS:
        config = parse_config((CONF / f"{command}.yaml").read_text(encoding="utf-8"))
        groups = _parse_groups(config.defaults)
        settings = [
            setting for setting in config.settings if setting.key.split(".")[0] not in groups
        ]
        parts += [f"## kd-{command}", _capitalize(config.about.removeprefix(f"kd-{command}: "))]
        chosen = [f"`{group}={choice}`" for group, choice in groups.items() if choice]
        if chosen:
            parts.append(f"Groups, as chosen by default: {', '.join(chosen)}.")
        if command == "check":
            parts.append("Takes every setting of [`kd-distill`](#kd-distill), and these:")
        parts += _render_table([_require(setting) for setting in settings])
    return "\n\n".join(parts) + "\n"


def _parse_groups(defaults: Sequence[Any]) -> dict[str, str]:
    """Return the groups of a defaults list with their choices. Hydra's own group has no
    choice.
    """
    groups = {"hydra": ""}
    for default in defaults:
        if isinstance(default, dict):
            ((key, value),) = default.items()
            if not key.startswith("override "):
                text = f"[{','.join(value)}]" if isinstance(value, list) else value
                groups[key] = "null" if text is None else text
    return groups


def _require(setting: Setting) -> Setting:
    """Mark a setting without default as required."""
    return (
        Setting(setting.key, "required", setting.meaning) if setting.default == "`???`" else setting
    )


def render_results() -> str:
    """Render the fields of ``results.json``, one table per object of the schema."""
    schema = Results.model_json_schema(mode="serialization")
    objects = {"Results": schema, **schema["$defs"]}
    parts = [
        "# results.json",
        WRITTEN,
        "One schema describes every run. `kd-report schema=true` prints it as JSON Schema. Numbers"
        " are shares from 0 to 1 unless the table says otherwise, and `null` where they are"
        " undefined. A field with bounds has two more fields, `<name>_low` and `<name>_high`, the"
        " ends of its interval.",
    ]
    for name, entry in objects.items():
        parts += [f"## {name}", *_render_object(entry)]
    return "\n\n".join(parts) + "\n"


def _render_object(entry: Mapping[str, Any]) -> list[str]:
    about = re.sub(r"\s*\n\s*", " ", re.sub(r"\n\s*\n", "\0", entry.get("description", "")))
    parts = [_sentence(paragraph) for paragraph in about.split("\0") if paragraph]
    fields = entry.get("properties", {})
    rows = []
    for name, field in fields.items():
        if name.endswith(BOUNDS) and name.rpartition("_")[0] in fields:
            continue
        bounds = ", with bounds" if all(f"{name}{end}" in fields for end in BOUNDS) else ""
        required = name in entry.get("required", ())
        default = "required" if required else f"`{json.dumps(field.get('default'))}`"
        if not required and isinstance(field.get("default"), dict):
            default = "`{}`"
        rows.append(
            f"| `{name}` | {_describe_type(field)}{bounds} | {default} |"
            f" {_cell(field.get('description', ''))} |"
        )
    if not rows:
        return parts
    if all(row.endswith("|  |") for row in rows):
        rows = [row.removesuffix("  |") for row in rows]
        return [*parts, "\n".join(["| field | type | default |", "|---|---|---|", *rows])]
    head = ["| field | type | default | meaning |", "|---|---|---|---|"]
    return [*parts, "\n".join([*head, *rows])]


def _describe_type(field: Mapping[str, Any]) -> str:
    """Describe the type of a field, with links to objects of the schema."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        text = f"[{name}](#{_slug(name)})"
    elif "anyOf" in field:
        text = " or ".join(_describe_type(option) for option in field["anyOf"])
    elif "enum" in field or "const" in field:
        values = field.get("enum", [field.get("const")])
        text = ", ".join(f"`{json.dumps(value)}`" for value in values)
    elif field.get("type") == "array":
        text = f"list of {_describe_type(field.get('items', {}))}"
    elif isinstance(field.get("additionalProperties"), dict):
        text = f"map to {_describe_type(field['additionalProperties'])}"
    else:
        text = str(field.get("type", "any")).replace("object", "map")
    return text


RENDERERS = {
    "config.md": render_config,
    "commands.md": render_commands,
    "results.md": render_results,
}


def write_pages() -> None:
    """Write the pages of `RENDERERS` into `PAGES`."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, render in RENDERERS.items():
        (PAGES / name).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    write_pages()
