"""YAML of records: plain values only.

Anchors and aliases are refused, because a few lines of them expand to billions of
values. Timestamps are text, as for OmegaConf.
"""

from typing import Any

import yaml

from kd_app.config.errors import RequestError
from kd_app.config.values import MAX_DEPTH


def dump_yaml(value: Any) -> str:
    """The YAML of plain values, without anchors."""
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class PlainLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` without anchors, aliases, timestamps and deep nesting."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1
            raise RequestError(
                f"line {line} has the anchor or alias {event.anchor!r}. Write the values out"
            )
        if self._depth > MAX_DEPTH:
            raise RequestError("it is nested too deeply")
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


PlainLoader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
