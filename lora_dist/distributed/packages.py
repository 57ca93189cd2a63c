"""Which optional packages are installed."""

from importlib.util import find_spec


def is_installed(name: str) -> bool:
    """Return whether a package can be imported; a mere folder of its name, such as wandb's logs, is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None
