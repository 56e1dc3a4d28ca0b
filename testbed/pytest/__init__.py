"""What the pytest plugin consists of: with `testbed.pytest.plugin`, the only modules that know pytest.

state         what a session has: its lab, its seed, the profiles
markers       what the markers of a test ask
running       one test on a lab: its links before, during and after; its verdict
results       what is written of all tests: the results file, JUnit
workers       pytest-xdist's processes
"""
