"""Each claim on namespaces and, as a slow test, on containers."""

from __future__ import annotations

import pytest

from tests.lab.conftest import kind, stack

__all__ = ["kind", "stack"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on both; on containers it is slow."""
    if "kind" in metafunc.fixturenames:
        kinds = [pytest.param("local"), pytest.param("compose", marks=pytest.mark.slow)]
        metafunc.parametrize("kind", kinds, indirect=True, scope="session")
