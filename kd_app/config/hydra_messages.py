"""Messages of Hydra and OmegaConf, rewritten: what is wrong, what was expected, and
what to type instead.
"""

import re
from collections.abc import Sequence
from typing import Final

from kd_app.config.errors import RequestError, suggest_closest, take_first_line

_FLAGS: Final = (
    *("-h", "--help", "--version", "--hydra-help", "-i", "--info", "-c", "--cfg", "--resolve"),
    *("-p", "--package", "-r", "--run", "-m", "--multirun", "-sc", "--shell-completion"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    "--experimental-rerun",
)
"""The flags of Hydra."""
_VALUES: Final = {
    ("-c", "--cfg"): ("job", "hydra", "all"),
    ("-i", "--info"): ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
"""Flags with a choice of values; ``--info`` may also stand without one."""
_WITH_VALUE: Final = (
    *("-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    "--experimental-rerun",
)


def explain_message(text: str) -> str:
    """Rewrite a message of Hydra, which is on one line."""
    for pattern, sentence in _MESSAGES:
        if match := pattern.search(text):
            return sentence.format(*match.groups())
    reason = text.split(" Config search path:", maxsplit=1)[0].rstrip(".")
    return (
        f"The configuration can't be composed: {reason}. Check the overrides on the command line,"
        " and the files that --config-dir, hydra.searchpath= and experiment= name."
    )


def check_flags(arguments: Sequence[str]) -> None:
    """Raise `RequestError` for a flag that neither kd_app nor Hydra has, and for one
    without the value that it needs.
    """
    for number, argument in enumerate(arguments):
        flag, is_joined, value = argument.partition("=")
        if not is_joined:
            value = next(iter(arguments[number + 1 : number + 2]), "")
            value = "" if value.startswith("-") else value
        _check_value(flag, value)
        if re.match(r"--?[a-zA-Z]", flag) and flag not in _FLAGS:
            setting = flag.lstrip("-").replace("-", "_")
            raise RequestError(
                f"There is no flag {flag!r}. {suggest_closest(flag, _FLAGS)}A setting has no"
                f" dashes: {setting}=<value>. '--help' lists settings and flags."
            )


def _check_value(flag: str, value: str) -> None:
    if flag in _WITH_VALUE and not value:
        raise RequestError(f"{flag} needs a value: '{flag} <value>'. '--hydra-help' lists all.")
    choices = next((choices for flags, choices in _VALUES.items() if flag in flags), ())
    is_optional = flag in ("-i", "--info") and (not value or "=" in value)
    if choices and value not in choices and not is_optional:
        raise RequestError(
            f"{flag} needs one of {', '.join(choices)}, got {value!r}. For example: {flag}"
            f" {choices[0]}."
        )


def explain_missing(keys: Sequence[str]) -> str:
    """The paragraph for required settings without a value."""
    verb = "has" if len(keys) == 1 else "have"
    words = " ".join(f"{key}=<value>" for key in keys)
    return (
        f"{' and '.join(keys)} {verb} no value, and the command needs one. Add {words}; '--help'"
        " describes all settings."
    )


def explain_interpolation(error: BaseException) -> str:
    """The paragraph for a ``${...}`` in a value that can't be resolved."""
    text = take_first_line(error)
    key = getattr(error, "full_key", None) or "A value"
    if isinstance(error, RecursionError) or "Recursive" in text or "recursion" in text:
        return f"{key} refers to itself through ${{...}}. Expected a value that does not."
    if match := re.search(r"Environment variable '([^']+)' not found", text):
        return (
            f"{key} reads the environment variable {match[1]}, which is not set. Set it, or name a"
            f" default: ${{oc.env:{match[1]},<default>}}."
        )
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return (
            f"{key} refers to the setting {match[1]!r} through ${{...}}, but there is none."
            " '--cfg job' prints all settings. Quote a text with a dollar sign for the shell."
        )
    if match := re.search(r"Unsupported interpolation type (\S+)", text):
        return (
            f"{key} uses ${{{match[1]}:...}}, but there is no such function. Expected"
            " ${<setting>} or ${oc.env:<variable>}."
        )
    return f"{key} can't be resolved: {text.rstrip('.')}. '--cfg job' prints all settings."


_MESSAGES: Final = (
    (
        re.compile(r"Could not append to config\. An item is already at '([^']+)'"),
        "'+' adds a setting, but {0!r} already exists. Remove the '+'.",
    ),
    (
        re.compile(r"Could not delete from config\. '([^']+)' does not exist"),
        "'~' removes a setting, but {0!r} does not exist. '--cfg job' prints all settings.",
    ),
    (
        re.compile(r"Could not delete from config\. The value of '([^']+)' is (.+) and not (.+)\."),
        "'~{0}={2}' removes nothing: {0} is {1}. Use '~{0}', or {0}=<value> to change the value.",
    ),
    (
        re.compile(r"Could not delete '([^'=]+)[^']*'\. No match in the defaults list"),
        "'~{0}' removes nothing: {0} has no such choice. To change the choice, use {0}=<choice>, or"
        " a list of choices.",
    ),
    (
        re.compile(
            r"Could not override '([^']+)'\. Did you mean to override (?:one of )?([^?]+)\?"
        ),
        "There is no group {0!r} in this configuration. Did you mean {1}?",
    ),
    (
        re.compile(r"Could not override '([^']+)'"),
        "There is no group {0!r} in this configuration. '--help' lists the groups and their"
        " choices.",
    ),
    (
        re.compile(r"Multiple values for (\S+)\. To override a value use 'override [^:]+: (.+)'"),
        "{0} is chosen twice. To choose it on the command line, write {0}={1} without '+'; in a"
        " configuration file, write 'override /{0}: {1}' in its defaults.",
    ),
    (
        re.compile(r"force-add of config groups is not supported: '\+\+(.+)'"),
        "'++' sets a single setting, and {0} is a choice of a group. Remove the '++'.",
    ),
    (
        re.compile(r"does not support sweep type : (\w+?)_SWEEP"),
        "A sweep over all values can't draw from an interval. Name the values, for example"
        " seed=range(0,3), or search: hydra/sweeper=search.",
    ),
    (
        re.compile(r"Additional config directory '([^']*)' not found"),
        "--config-dir={0} is no folder. Expected a folder with configuration files.",
    ),
    (
        re.compile(r"Cannot find primary config '([^']*)'"),
        "--config-name={0}: there is no such configuration. Leave the flag out; a file of your own"
        " is chosen with --config-dir=<folder> and experiment=<name>.",
    ),
    (
        re.compile(r"Primary config directory not found\. .*directory '([^']*)'"),
        "--config-path={0}: there is no such folder. Leave the flag out; files of your own are in"
        " --config-dir=<folder>.",
    ),
    (
        re.compile(r"Sweep parameters '(.+)' requires --multirun"),
        "{0} is a sweep over several values. Add -m to run once for each value.",
    ),
    (
        re.compile(r"In '([^']+)': \w+ raised while composing config: (.+?)(?: full_key: .*)?$"),
        "The configuration file {0}.yaml does not fit: {1}. Its keys replace those of the"
        " configuration, so each value has to be of the same kind. '--cfg job' prints them.",
    ),
    (
        re.compile(r"Error merging override ([^\s=]+=\[.*?) Cannot merge DictConfig with"),
        "{0} is a list. Expected named values: {{name: value}}.",
    ),
    (
        re.compile(r"Error merging override ([^\s=]+=\{.*?) Cannot merge DictConfig with"),
        "{0} has named values. Expected a list: [value, value].",
    ),
    (
        re.compile(r"Error merging override (\S+) (.+?)(?: full_key: .*)?$"),
        "{0} does not fit: {1}. '--cfg all' prints all settings with their values.",
    ),
    (
        re.compile(
            r"mismatched input|token recognition error|extraneous input|no viable alternative"
        ),
        "The command line can't be read. Expected <setting>=<value>, for example seed=1. Quote"
        " values with brackets, spaces or commas for the shell.",
    ),
    (
        re.compile(
            r"looks like a config group override, but config group '([^']+)' does not exist"
        ),
        "There is no group {0!r}. '--help' lists the groups and their choices.",
    ),
    (
        re.compile(r"Ambiguous value for argument '([^=]+)=([^']*)'"),
        "{0}={1} gives several values to one run. Add -m to run once for each value, or use"
        " '{0}=[{1}]' for a list.",
    ),
)
"""Patterns of Hydra's messages, each with the message for users."""
