"""Ask Compose about every file again, and keep its answers."""

import tempfile
from pathlib import Path

from tests.unit import corpus

with tempfile.TemporaryDirectory() as place:
    answers = corpus.ask(Path(place))
corpus.write(answers)
print(f"Compose {answers['compose']}: {len(answers['answers'])} files")  # noqa: T201  # what it is called for
