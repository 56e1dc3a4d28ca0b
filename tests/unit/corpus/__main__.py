"""Ask Compose about every file again, and keep its answers."""

import tempfile
from pathlib import Path

from tests.unit import corpus

with tempfile.TemporaryDirectory() as place:
    found = corpus.ask(Path(place))
corpus.write(found)
print(f"Compose {found['compose']}: {len(found['answers'])} files")  # noqa: T201  # what it is called for
