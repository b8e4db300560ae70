"""The one exception that the user's own input can cause; everything else that escapes is a bug."""

import difflib
from collections.abc import Iterable


class SecateurError(ValueError):
    """What was received, what was expected and how to fix it, in one line.

    The command line prints the message without a traceback (`--debug` shows it).

    >>> raise SecateurError("sparsity 50 received; expected a fraction of zeros in [0, 1): 0.5")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: sparsity 50 received; expected a fraction of zeros in [0, 1): 0.5
    """


class Impossible(SecateurError):
    """What no computation can give, such as a layer that keeps a unit when all are to go.

    >>> issubclass(Impossible, SecateurError)
    True
    """


def nearest(word: object, known: Iterable[str]) -> str:
    """What to say after an unknown name: the known ones that resemble it, else what is known.

    >>> nearest("prun", ["prune", "keep-zeros"]), nearest("x", ["prune", "keep-zeros"])
    ("did you mean 'prune'?", 'known: keep-zeros, prune')
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(str(word), names, n=2, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
