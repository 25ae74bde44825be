"""Write the node's parameters into `config/perception.yaml` and `docs/topics.md`: `make parameters`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semla_ros.config import DriftConfig, RetrievalConfig, Setting, settings_of
from semla_ros.serving.parameters import SPECS

# Where one of these is not given, what the library recommends counts before the default.
RECOMMENDED = {*settings_of(RetrievalConfig), *settings_of(DriftConfig)}
ROOT = Path(__file__).resolve().parents[1]
YAML, TOPICS = ROOT / "config" / "perception.yaml", ROOT / "docs" / "topics.md"
START, END = "<!-- parameters: written by `make parameters` -->\n", "<!-- end of parameters -->\n"
YAML_HEAD = """\
# Every parameter of the perception node with its default, by `make parameters`.
# [live] ones can be set while the node runs; the others are read when it starts.
# Names behind a '# ' are not set: what the adapter library or the model recommends counts, and the value
# shown only where neither recommends one.
/**:
  ros__parameters:
"""
TABLE_HEAD = "| parameter | default | allowed | live | meaning |\n| --- | --- | --- | --- | --- |\n"


def as_yaml() -> str:
    """The parameter file."""
    text, group = YAML_HEAD, ""
    for name, spec in sorted(SPECS.items(), key=lambda item: "." in item[0]):  # groups follow the plain ones
        *groups, key = name.split(".")
        if groups and groups[0] != group:
            group = groups[0]
            text += f"    {group}:\n"
        indent = "      " if groups else "    "
        text += f"{indent}# {'[live] ' if spec.is_live else ''}{_meaning(spec)}\n"
        text += f"{indent}{'# ' if name in RECOMMENDED else ''}{key}: {_plain(spec.default)}\n"
    return text


def as_table() -> str:
    """The table of the documentation."""
    rows = [
        f"| `{name}` | {'library, else ' if name in RECOMMENDED else ''}`{_plain(spec.default)}` "
        f"| {_allowed(spec)} | {'yes' if spec.is_live else ''} | {spec.text.replace('<', '&lt;')} |\n"
        for name, spec in SPECS.items()
    ]
    return TABLE_HEAD + "".join(rows)


def with_table(page: str) -> str:
    """A page whose table between the two marks is the present one."""
    before, _, rest = page.partition(START)
    return before + START + "\n" + as_table() + "\n" + END + rest.partition(END)[2]


def _meaning(spec: Setting) -> str:
    return spec.text + (f" ({_allowed(spec)})" if _allowed(spec) else "")


def _allowed(spec: Setting) -> str:
    return ", ".join(filter(None, (spec.unit, spec.allowed)))


def _plain(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f'"{default}"' if isinstance(default, str) else repr(default)


if __name__ == "__main__":
    YAML.write_text(as_yaml(), encoding="utf-8")
    TOPICS.write_text(with_table(TOPICS.read_text(encoding="utf-8")), encoding="utf-8")
