"""Our markers, as pytest is told of them."""

from __future__ import annotations

MARKERS = (
    (
        'impair(link, profile | delay="40ms", loss="2%", …): impair a link during the test: "a -> b" one way, '
        '"a <-> b" both ways; stackable. Words: see `testbed profiles --words`. prove=True: probe it first.'
    ),
    ('impair_each(link, "profile", …): run the test once under each profile (without names: under every one).'),
    (
        'stack("other/compose.yaml", …, profiles=[…]): the stack of the test, of a Compose file or of several that add '
        "up; the one before it is taken down first. Paths begin at the test's folder, or where pytest runs."
    ),
    (
        'stack_each("v1/compose.yaml", "v2/compose.yaml", …, profiles=[…]): run the test on each of these stacks, one '
        "after the other."
    ),
    (
        'shape(links, rate="8mbit", queue="200kB", qdisc="fq_codel", ecn=True): have these links, as in '
        '"* -> server", share one rate and one queue during the test; stackable.'
    ),
)
"""How each is called, and what it does."""
NAMES = tuple(marker.partition("(")[0] for marker in MARKERS)
IMPAIRING = ("impair", "shape")
"""Those that have something in force on links; on a class, a module or the session for wider fixtures, too."""
