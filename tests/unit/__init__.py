"""Tests that need nothing but Python: no engine, no network, no privileges."""

from hypothesis import settings

# A loaded machine is slow, not wrong; pytest-timeout ends what hangs.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
