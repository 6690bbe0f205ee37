"""Writes settings.md, the reference of settings, from their declarations: `make docs`. tests/test_docs.py compares
them."""

from itertools import groupby
from pathlib import Path

from bei.router import FLAGS, OTHER_FLAGS, UNASKED, WITHOUT_EFFECT, Flag
from bei.settings import Settings, keys
from bei.settings.block import REFUSED
from bei.settings.reference import Setting, settings_of

FILE = Path(__file__).with_suffix(".md")
SETTINGS = {setting.name: setting for setting in settings_of(Settings)}
PAGE = """<!-- Written by settings.py: `make docs`. -->
# Settings
Each setting has a flag of `bei serve` and an environment variable; some have a key in the `trt_llm` block
([below](#keys-of-trt_llm)). A variable overrides the key, and the flag overrides both. A switch has a second flag that
turns it off: `--no-auto-truncate`. Repeat a flag, or separate values by commas, where several values are allowed. An
unknown variable, an unknown key, and a value out of bounds are refused by name at the start.

`bei info`, `bei build` and `bei embed` have the flags of the first two tables. `BEI_CONFIG` is the variable of
`--config`; it is ignored where a model is named (`bei serve MODEL`).
Units are single tokens, texts and bytes, and seconds. A number of bytes may have a unit: `2GB`, `512MiB`.
{groups}

## Keys of trt_llm
This is truss's own schema, field for field. The server obeys a key, refuses it by name, or logs that it has no effect
here. For a key with the effect of a flag the table shows that flag.

| key | effect |
|---|---|
{keys}

## Flags of text-embeddings-router
These are the flags and variables of text-embeddings-inference 1.9, with its defaults. The last column shows the flag of
`bei serve` with the same effect. A `BEI_*` variable overrides a default, and a flag overrides both. {unasked}

| flag | variable | default | effect |
|---|---|---|---|
{flags}
"""


def group(heading: str, settings: list[Setting]) -> str:
    rows = "\n".join(map(setting_row, settings))
    return (
        f"\n## {heading.rstrip('.')}\n| flag | variable | values | default | meaning |\n|---|---|---|---|---|\n{rows}"
    )


def setting_row(setting: Setting) -> str:
    choices = setting.values.split("|")
    values = (
        ", ".join(f"`{value}`" for value in choices) if len(choices) > 1 else f"{choices[0].lower()}{setting.bounds}"
    )
    default = f"`{setting.default}`" if setting.default else ""
    return f"| `{setting.flag}` | `{setting.variable}` | {values} | {default} | {in_cell(setting.help)} |"


def in_cell(text: str) -> str:
    """Stars and angle brackets are themselves."""
    return text.replace("*", r"\*").replace("<", "&lt;")


def key_rows() -> list[str]:
    obeyed = {key: f"`{SETTINGS[setting].flag}`" for key, setting in keys.OBEYED.items()}
    obeyed[keys.SECRET_NAME] = "names the secret that a private source asks for"
    effects = obeyed | {key: f"refused: {reason}" for key, reason in REFUSED.items()}
    effects |= {key: f"none: {reason}" for key, reason in keys.WITHOUT_EFFECT.items()}
    return [f"| `{key}` | {effect} |" for key, effect in effects.items()]


def flag_row(flag: Flag) -> str:
    words = "; ".join(f"`{theirs}` is `{ours}`" for theirs, ours in flag.words.items())
    effect = f"`{SETTINGS[flag.setting].flag}`" + (f": {words}" if words else "")
    return row_of_tei(flag.name, f"`{flag.default}`" if flag.default else "", effect)


def row_of_tei(name: str, default: str, effect: str) -> str:
    return f"| `--{name}` | `{name.upper().replace('-', '_')}` | {default} | {effect} |"


def flag_rows() -> list[str]:
    others = [row_of_tei(name, "", in_cell(help)) for name, help in OTHER_FLAGS.items()]
    nothing = [row_of_tei(name, "", f"none: {why}") for name, why in WITHOUT_EFFECT.items()]
    return [*map(flag_row, FLAGS), *others, *nothing]


def table() -> str:
    groups = (group(heading, list(found)) for heading, found in groupby(SETTINGS.values(), lambda found: found.group))
    unasked = "; ".join(f"`{SETTINGS[name].flag}` is `{value}`" for name, value in UNASKED.items())
    return PAGE.format(
        groups="\n".join(groups),
        keys="\n".join(key_rows()),
        flags="\n".join(flag_rows()),
        unasked=f"In addition, {unasked} unless a variable says otherwise.",
    )


if __name__ == "__main__":
    FILE.write_text(table())
