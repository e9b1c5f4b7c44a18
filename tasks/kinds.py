"""The tasks by name, as `task` in settings and checkpoints."""

from tasks.classification import Classification
from tasks.dialogue import Dialogue, Poem, TemplateConversation
from tasks.instruction import Instruct
from tasks.language import Language

TASKS = {"language": Language, "dialogue": Dialogue, "poem": Poem, "instruction": Instruct,
         "classification": Classification}


def answers_of(entry):
    """The class of Answers for the task of a checkpoint, or for a model of another project, which may have a `template`
    for chats."""
    return TemplateConversation if entry.get("template") else TASKS[entry["kind"]].answers
