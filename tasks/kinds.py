"""The tasks by name, as `task` in settings and checkpoints."""

from tasks.classification import Classification
from tasks.dialogue import Dialogue, Poem
from tasks.instruction import Instruct
from tasks.language import Language

TASKS = {"language": Language, "dialogue": Dialogue, "poem": Poem, "instruction": Instruct,
         "classification": Classification}
