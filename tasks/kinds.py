"""All tasks, by the name in settings and checkpoints."""

from tasks.classification import Classification
from tasks.dialogue import Dialogue, Poem, TemplateConversation
from tasks.instruction import Instruct
from tasks.language import Language
from tasks.task import Answers

TASKS = {"language": Language, "dialogue": Dialogue, "poem": Poem, "instruction": Instruct,
         "classification": Classification}


def answers_class(entry: dict) -> type[Answers]:
    """Return the class of Answers for the task of a checkpoint.

    A chat model of another project has a `template`.
    """
    return TemplateConversation if entry.get("template") else TASKS[entry["kind"]].answers
