"""Tests that need nothing but Python: no engine, no network, no privileges."""

import os

from hypothesis import settings

# A loaded machine is slow, not wrong; pytest-timeout ends what hangs. In CI there is time for more examples.
settings.register_profile("unit", deadline=None, max_examples=100 if os.environ.get("CI") else 40)
settings.load_profile("unit")
