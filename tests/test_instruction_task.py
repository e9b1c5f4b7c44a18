"""The instruction task: the last step of an epoch, memorized answers, and the prompt of a typed instruction."""

import json

import pytest
import torch
import torch.nn.functional as F
from small_models import small_model
from small_tasks import data as data  # a fixture
from small_tasks import task_settings

import terminal_demo
from models.config import ReplyConfig
from models.generate import generate
from records.examples import ExampleBatches
from records.instructions import Instruction, instruction_examples, instruction_texts, prompt_ids, prompt_text
from records.report import DataReport
from tasks.instruction import Response
from tokenization.load import train_tokenizer
from training.checkpoint import load_checkpoint
from training.loop import Progress, Trainer, fit
from training.run import train as run
from training.shares import Shares
from training.step import TrainStep
from utils.errors import UserError

COLORS = ["red", "green", "blue", "black", "white"]
THINGS = ["sky", "sea", "leaf", "fox"]


def test_fewer_micro_batches_at_the_end_of_an_epoch_are_a_step_with_the_correct_gradient():
    texts = ["One.", "Two, two.", "Three, three, three.", "4", "Five five five five."]
    records = [Instruction(f"Say {i}.", "", text, f"item {i}") for i, text in enumerate(texts)]
    tokenizer = train_tokenizer(instruction_texts(records), "char").with_special_tokens()
    examples = instruction_examples(records, tokenizer, 256, DataReport("a.json"))
    batches = ExampleBatches(examples, batch_size=1, accumulation=4, seed=0)
    models = [small_model("DevModel", vocab_size=tokenizer.vocab_size, block_size=256) for _ in range(2)]
    sgd = torch.optim.SGD(models[0].parameters(), lr=torch.tensor(0.1))
    train_step = TrainStep(models[0], [sgd], grad_clip=1e9, dtype=torch.float32,
                           scaler=torch.amp.GradScaler("cpu", enabled=False))
    trainer = Trainer(train_step, Shares(batches), lambda step: 1.0, lambda *_: False, max_iters=2, eval_interval=9)
    fit(trainer, Progress())

    four, fifth = [[instruction_of(x, tokenizer) for x, _ in batches(step)] for step in (0, 1)]
    assert len(four) == 4 and len(fifth) == 1 and sorted(four + fifth) == [0, 1, 2, 3, 4]
    expected = models[1].train()
    for step in (four, fifth):  # by hand: the mean loss over all targets of a step, and one update
        losses = [response_losses(expected, records[i], tokenizer) for i in step]
        torch.cat(losses).mean().backward()
        with torch.no_grad():
            for weight in expected.parameters():
                weight -= 0.1 * weight.grad
                weight.grad = None
    torch.testing.assert_close(models[0].state_dict(), expected.state_dict(), atol=1e-6, rtol=1e-5)


def instruction_of(x, tokenizer):
    """Return the number in the instruction of the only example in x (1, T)."""
    return int(tokenizer.decode(x[0].tolist()).partition("Say ")[2][0])


def response_losses(model, record, tokenizer):
    """Return the loss of each token of a response and of the end-of-text token behind it."""
    prompt = tokenizer.encode(prompt_text(record.instruction))
    ids = torch.tensor([*prompt, *tokenizer.encode(record.output), tokenizer.end_of_text])
    logits = model(ids[None, :-1])[0][0]
    return F.cross_entropy(logits[len(prompt) - 1 :], ids[len(prompt) :], reduction="none")


def test_a_model_that_overfits_20_instructions_repeats_their_outputs_word_for_word_and_stops(data):
    records = [{"instruction": f"Describe the {color} {thing}.", "output": f"{thing} of {color}, {i} miles away"}
               for i, (color, thing) in enumerate((color, thing) for color in COLORS for thing in THINGS)]
    (data / "records.json").write_text(json.dumps(records), encoding="utf-8")
    run(task_settings("instruction", "overfit", "--data.val_path=records.json", "--data.tokenizer=bpe",
                      "--data.vocab_size=600", "--model.block_size=96", "--model.n_embd=64",
                      "--training.batch_size=20", "--training.max_iters=120", "--training.eval_interval=120",
                      "--sampling.temperature=0"))
    model, tokenizer, task, reply = load_checkpoint("checkpoints/overfit")
    for record in records:
        ids = generate(model, prompt_ids(record["instruction"], None, tokenizer), 40, reply, tokenizer.special_ids)
        assert tokenizer.decode(ids) == record["output"]  # which ends before 40 tokens, at the end-of-text token
        assert "".join(Response(model, tokenizer, task, print).answer(record["instruction"], reply)) == record["output"]


def test_a_response_is_cut_at_a_token_and_not_at_text_that_looks_like_a_heading(monkeypatch):
    tokenizer = train_tokenizer([prompt_text("Sing.")], "bpe", 300).with_special_tokens()
    model = small_model("TransformerModel", vocab_size=tokenizer.vocab_size, block_size=320)
    answer = "Yes.\n\n### Response:\n<|endoftext|> No."
    tokens = [*tokenizer.encode(answer), tokenizer.end_of_text, 1]
    monkeypatch.setattr("models.generate.Sampler.restart", lambda *_: tokens.pop(0))
    monkeypatch.setattr("models.generate.Sampler.next_after", lambda *_: tokens.pop(0))
    response = Response(model, tokenizer, {}, print).answer("Sing.", ReplyConfig(max_tokens=100))
    assert "".join(response) == answer and tokens == [1]


def test_a_typed_instruction_gets_the_training_prompt(data, run_main, capsys):
    run(task_settings("instruction", "short", "--sampling.temperature=0"))
    model, tokenizer, task, _ = load_checkpoint("checkpoints/short")
    ids = tokenizer.encode(prompt_text("Greet a."))
    expected = tokenizer.decode(generate(model, ids, 4, ReplyConfig(temperature=0), tokenizer.special_ids))
    capsys.readouterr()
    options = ["checkpoints/short", "--device=cpu", "--max_tokens=4"]
    assert run_main(terminal_demo.main, *options, "--prompt", "Greet a.") == expected + "\n"
    with pytest.raises(UserError, match=r"the instruction has \d+ tokens, and the context 320: use a shorter one"):
        list(Response(model, tokenizer, task, print).answer("Greet a." * 40, ReplyConfig()))
