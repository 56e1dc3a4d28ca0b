"""Tests that need nothing but Python: no engine, no network, no privileges."""
