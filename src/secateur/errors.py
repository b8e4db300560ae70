"""The one exception that the user's own input can cause; everything else that escapes is a bug."""


class SecateurError(ValueError):
    """What was received, what was expected and how to fix it, in one line.

    The command line prints the message without a traceback (`--debug` shows it).

    >>> raise SecateurError("sparsity 50 received; expected a fraction of zeros in [0, 1): 0.5")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: sparsity 50 received; expected a fraction of zeros in [0, 1): 0.5
    """
