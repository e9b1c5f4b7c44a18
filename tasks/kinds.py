"""The tasks by name, as `task` in settings and checkpoints."""

from tasks.classification import Classification
from tasks.dialogue import Dialogue, Poem, TemplateConversation
from tasks.instruction import Instruct
from tasks.language import Language

TASKS = {"language": Language, "dialogue": Dialogue, "poem": Poem, "instruction": Instruct,
         "classification": Classification}


def answers_of(entry):
    """The class of Answers for the task of a checkpoint, or for a chat model of another project, which has `chat`."""
    return TemplateConversation if "chat" in entry else TASKS[entry["kind"]].answers
