"""The recipes that come with the package: one TOML file each, explained in its first comment."""

from importlib import resources


def builtin_recipes() -> dict[str, str]:
    """Name -> TOML text, by name.

    >>> sorted(builtin_recipes())
    ['demo', 'lab']
    """
    files = [f for f in resources.files(__name__).iterdir() if f.name.endswith(".toml")]
    return {f.name[:-5]: f.read_text(encoding="utf-8") for f in sorted(files, key=lambda f: f.name)}


def explanation(text: str) -> str:
    r"""The comment that a recipe's text opens with, as one paragraph.

    >>> explanation('# Does this,\n# then that.\nname = "x"')
    'Does this, then that.'
    """
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines)
