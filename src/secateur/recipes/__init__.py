"""The recipes and grids that come with the package: one TOML file each, explained in its first comment."""

import tomllib
from importlib import resources


def builtin_recipes() -> dict[str, str]:
    """Name -> TOML text of each recipe, by name.

    >>> sorted(builtin_recipes())
    ['demo', 'lab', 'lab-pruned-qat', 'lab-qat']
    """
    return {name: text for name, text in _texts().items() if "curves" not in tomllib.loads(text)}


def builtin_grids() -> dict[str, str]:
    """Name -> TOML text of each grid (recipes with curves), by name.

    >>> "challenge" in builtin_grids()
    True
    """
    return {name: text for name, text in _texts().items() if "curves" in tomllib.loads(text)}


def _texts() -> dict[str, str]:
    files = [f for f in resources.files(__name__).iterdir() if f.name.endswith(".toml")]
    return {
        f.name[:-5]: f.read_text(encoding="utf-8") for f in sorted(files, key=lambda f: f.name[:-5])
    }


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
