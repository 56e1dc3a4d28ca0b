"""What all tests share."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for another kind of lab than the one that ``--lab`` asks for."""
    lab = config.getoption("--lab")

    def fits(item: pytest.Item) -> bool:
        return isinstance(item, pytest.Function) and (
            not hasattr(item, "callspec") or item.callspec.params.get("kind", lab) == lab
        )

    if lab != "auto":
        config.hook.pytest_deselected(items=[item for item in items if not fits(item)])
        items[:] = filter(fits, items)
