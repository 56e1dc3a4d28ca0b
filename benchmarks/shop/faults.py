"""Which faults are planted in this version; `benchmarks/power.py` writes another line here."""

FAULTS: tuple[str, ...] = ()
