"""Commands are found in Markdown as a shell would read them."""

from tests.docs.shell import find_commands

TEXT = """
See `kd-distill --help`, or `pip install x`, or ``nothing``.
```bash
# first
VAR=1 .venv/bin/kd-distill data=digits \\
    'loss=[cross_entropy,soft_target]' out="a b"   # two lines
make demo
$ kd-evaluate run=a out=b
torchrun --nproc-per-node=2 -m kd_app.commands.distill seed=1
torchrun other.py
```
```python
print("it's no shell: kd-distill")
```
```text
kd-distill is=text
```
| `kd-distill -m seed=0,1` |
"""


def test_commands_are_found_in_shell_blocks_and_inline_code() -> None:
    assert find_commands(TEXT) == [
        ("kd-distill", "--help"),
        ("kd-distill", "data=digits", "loss=[cross_entropy,soft_target]", "out=a b"),
        ("kd-evaluate", "run=a", "out=b"),
        ("kd-distill", "seed=1"),
        ("kd-distill", "-m", "seed=0,1"),
    ]
