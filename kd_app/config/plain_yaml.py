"""YAML of records: plain values only.

Anchors and aliases are refused, because a few lines of them expand to billions of
values; long numbers, because 1:59:59:59... is a number to the base of 60, whose length
costs the square; and more values than any configuration has, because PyYAML reads a
few thousand in a second. Timestamps are text, as for OmegaConf.
"""

from typing import Any, Final

import yaml

from kd_app.config.errors import RequestError
from kd_app.config.values import MAX_DEPTH, shorten

_MAX_NODES: Final = 20_000
"""Keys and values of a record. The configuration of a run has some hundreds."""
_LONGEST_NUMBER: Final = 100
"""Characters of a number."""


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
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1
            raise RequestError(
                f"line {line} has the anchor or alias {event.anchor!r}. Write the values out"
            )
        if self._depth > MAX_DEPTH:
            raise RequestError("it is nested too deeply")
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise RequestError(f"it has more than {_MAX_NODES:,} keys and values")
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """The number of a node; raises `RequestError` for one that is too long."""
        if len(node.value) > _LONGEST_NUMBER:
            raise RequestError(f"the number {shorten(node.value)} is too long")
        is_int = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


PlainLoader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    PlainLoader.add_constructor(_tag, PlainLoader.construct_number)
