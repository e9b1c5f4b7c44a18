"""The tasks by name, as `task` in settings and checkpoints."""

from tasks.dialogue import Dialogue, Poem
from tasks.language import Language

TASKS = {"language": Language, "dialogue": Dialogue, "poem": Poem}
