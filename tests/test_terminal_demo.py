"""terminal_demo.py: as a command, in a pipe, on a terminal, and its prompts and commands line by line."""

import io
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_models import small_model

import terminal_demo
from models.config import SamplingConfig
from models.generate import generate
from models.quantize import quantize_int8
from tasks import language
from tokenization.characters import CharTokenizer
from training.checkpoint import load_model, save_checkpoint

SCRIPT = Path(terminal_demo.__file__)
TOKENIZER = CharTokenizer("\n abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    save_checkpoint(folder / "other.pt", small_model("EasyGPT", vocab_size=TOKENIZER.vocab_size), TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    model = small_model("DevModel", vocab_size=TOKENIZER.vocab_size)
    save_checkpoint(folder / "model.pt", model, TOKENIZER)
    return model


@pytest.fixture
def demo(folder, model, capsys, monkeypatch):
    """Return a function that runs the command on lines of standard input and returns its standard output and error."""
    monkeypatch.setattr(terminal_demo, "SHIPPED", folder / "model.pt")

    def run(*arguments, stdin=()):
        data = stdin if isinstance(stdin, bytes) else "".join(f"{line}\n" for line in stdin).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["terminal_demo.py", "--device", "cpu", *map(str, arguments)])
        terminal_demo.main()
        return capsys.readouterr()

    return run


def greedy(model, prompt, n):
    return TOKENIZER.decode(generate(model, TOKENIZER.encode(prompt), n, SamplingConfig(temperature=0)))


# ---- The command -----------------------------------------------------------------------------------------------------


def command(folder, *arguments, utf8="1", **options):
    command = [sys.executable, SCRIPT, folder / "model.pt", "--device", "cpu", *arguments]
    environment = os.environ | {"PYTHONUTF8": utf8, "PYTHONUNBUFFERED": "", "TERM": "xterm"}
    return subprocess.Popen(command, env=environment, **options)


def test_a_pipe_is_read_as_utf_8_in_any_locale(folder, model, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    process = command(folder, "--max_tokens", "1", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                      stderr=subprocess.PIPE, utf8="0")
    _, err = process.communicate("heÉllo中\n".encode())
    assert "'É', '中'" in err.decode()


def test_a_pipe_gets_the_output_of_generate_and_nothing_else(folder, model):
    process = command(folder, "--prompt", "heÉllo中", "--max_tokens", "40", "--temperature", "0",
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    out, err = process.communicate()
    assert process.returncode == 0
    assert out == greedy(model, "hello", 40) + "\n"
    assert re.fullmatch(r"skipped.*: 'É', '中'\n40 tokens in \d+\.\d s, [\d,]+ tokens/s\n", err)


def test_the_speed_of_one_token_is_in_the_singular(demo):
    assert demo("--prompt", "a", "--max_tokens", "1").err.startswith("1 token in ")


def test_a_closed_pipe_ends_the_command_quietly(folder, model):
    process = command(folder, "--prompt", "", "--max_tokens", str(10**9),
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(process.stdout.read(100)) == 100  # streamed, long before the end
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


class Terminal:
    """The command on a terminal."""

    def __init__(self, folder):
        import pty

        self.output = ""
        self.screen, end = pty.openpty()
        self.process = command(folder, stdin=end, stdout=end, stderr=end, start_new_session=True)
        os.close(end)

    def type(self, keys):
        os.write(self.screen, keys.encode())

    def ctrl_c(self):
        self.process.send_signal(signal.SIGINT)

    def until(self, pattern):
        """Return the output from the last call to the end of the first match of a pattern."""
        while not (match := re.search(pattern, self.output, re.DOTALL)):
            assert select.select([self.screen], [], [], 60)[0], f"no more output after {self.output!r}"
            self.output += os.read(self.screen, 4096).decode()
        matched, self.output = self.output[: match.end()], self.output[match.end() :]
        return matched


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX terminal")
def test_on_a_terminal_ctrl_c_stops_the_reply_and_not_the_session(folder, model):
    pytest.importorskip("readline")
    terminal = Terminal(folder)
    try:
        greeting = terminal.until(r"> ")
        assert all(words in greeting for words in ("the model continues it", "Enter alone", "Ctrl-C", "exit"))

        terminal.type("\n")  # endless: far more than the 500 tokens of a reply to a prompt
        terminal.until(r".{2000}")
        terminal.ctrl_c()
        end = terminal.until(r"tokens/s[^>]*> ")
        n_tokens = re.search(r"\033\[2m([\d,]+) tokens in .* s, .* tokens/s\033\[0m", end)[1]
        assert int(n_tokens.replace(",", "")) > 500

        terminal.ctrl_c()
        if not select.select([terminal.screen], [], [], 5)[0]:
            terminal.ctrl_c()  # one between readline's prompt and its wait for a key takes effect with the next
        assert "exit" in terminal.until(r"quits[^>]*> ")

        terminal.type("/seed 7\n")
        terminal.until(r"seed 7\s[^>]*seed 7\s[^>]*> ")  # the echo, and the answer
        terminal.type("\x1b[A\n")  # arrow up
        terminal.until(r"seed 7\s[^>]*seed 7\s[^>]*> ")

        terminal.type("exit\n")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)


# ---- Replies ---------------------------------------------------------------------------------------------------------


def test_lines_of_a_pipe_are_prompts_and_start_their_replies(demo, model):
    out, err = demo("--temperature", 0, "--max_tokens", 15, stdin=["hello", "", " the é"])
    replies = [greedy(model, prompt, 15) for prompt in ("hello", "\n", " the ")]  # "\n" stands for an empty prompt
    assert out == "hello{}\n{}\n the {}\n".format(*replies)
    assert err.count("15 tokens in") == 3 and "skipped, not in the vocabulary: 'é'\n" in err


def test_text_is_streamed(demo, monkeypatch):
    stdout, seen = io.BytesIO(), []

    def pieces(*_, **__):
        for piece in ("one ", "two ", "three"):
            yield piece
            seen.append(stdout.getvalue())

    monkeypatch.setattr(language, "generate_text", pieces)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout))
    demo("--prompt", "")
    assert seen == [b"one ", b"one two ", b"one two three"]


def test_a_fixed_seed_gives_reproducible_output(demo):
    first, other = demo("--seed", 1, "--prompt", "hello").out, demo("--seed", 2, "--prompt", "hello").out
    assert len(first) == 501 and first == demo("--seed", 1, "--prompt", "hello").out != other
    out = demo("--max_tokens", 500, stdin=["/seed 2", "hello", "/seed 1", "hello"]).out
    assert out == f"hello{other}hello{first}"


def test_without_a_seed_replies_differ(demo):
    assert demo("--prompt", "hello").out != demo("--prompt", "hello").out


def test_a_prompt_of_unknown_characters_is_an_empty_prompt(demo):
    assert demo("--seed", 1, "--prompt", "中文").out == demo("--seed", 1, "--prompt", "").out


def test_bytes_that_are_not_utf_8_are_skipped(demo, model):
    out, err = demo("--temperature", 0, "--max_tokens", 5, stdin=b"a\xffb\n")
    assert out == f"ab{greedy(model, 'ab', 5)}\n" and "skipped" in err


def test_byte_order_marks_and_carriage_returns_are_removed_from_piped_prompts(demo):
    arguments = ["--temperature", 0, "--max_tokens", 5]
    out, err = demo(*arguments, stdin=b"\xef\xbb\xbfhello\r\n the \r\n")
    assert out == demo(*arguments, stdin=["hello", " the "]).out and "skipped" not in err


def test_many_unknown_characters_are_skipped_quickly_and_counted(demo):
    unknown = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))
    start = time.perf_counter()
    out, err = demo("--seed", 1, "--prompt", f"he{unknown}llo")
    assert time.perf_counter() - start < 10
    assert out == demo("--seed", 1, "--prompt", "hello").out
    first = ", ".join(map(repr, unknown[:10]))
    assert err.splitlines()[0] == f"skipped, not in the vocabulary: {first} and 19,990 more"


@pytest.mark.parametrize("terminal, expected", [(True, r"\x1b[2J\x9b\r" + "\t\n"), (False, "\x1b[2J\x9b\r\t\n")])
def test_control_characters_reach_a_pipe_and_not_a_terminal(demo, monkeypatch, terminal, expected):
    stdout = io.StringIO()
    stdout.isatty, stdout.reconfigure = lambda: terminal, lambda **_: None
    monkeypatch.setattr(language, "generate_text", lambda *_, **__: iter(["\x1b[2J", "\x9b\r\t\n"]))
    monkeypatch.setattr(sys, "stdout", stdout)
    demo("--prompt", "")
    assert stdout.getvalue() == expected + "\n"


def test_int8_weights_are_reported_and_used_for_every_model_that_is_loaded(demo, folder):
    replies = []
    for name in ("model.pt", "other.pt"):
        quantized = load_model(folder / name)[0]
        quantize_int8(quantized)
        replies.append(greedy(quantized.bfloat16(), "hello", 40))
    arguments = ["--quantize", "int8", "--temperature", 0, "--max_tokens", 40]
    out, err = demo(*arguments, stdin=["hello", f"/load {folder / 'other.pt'}", "hello"])
    assert out == "hello{}\nhello{}\n".format(*replies)
    sizes = re.findall(r"^int8 weights: ([\d.]+) KiB, 0\.\d+ times the ([\d.]+) KiB of float32$", err, re.MULTILINE)
    n_weights = sum(weight.numel() for weight in load_model(folder / "model.pt")[0].parameters())
    assert len(sizes) == 2 and float(sizes[0][1]) == pytest.approx(n_weights * 4 / 1024, abs=0.01)


# ---- Commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, answer", [
    ("/temperature 0.5", "temperature 0.5"), ("/top_k 3", "top_k 3"), ("/top_p 0.9", "top_p 0.9"),
    ("/repetition_penalty 1.2", "repetition_penalty 1.2"), ("/seed  7 ", "seed 7"), ("/max_tokens 9", "max_tokens 9"),
])  # fmt: skip
def test_a_command_sets_what_the_option_of_the_same_name_sets(demo, line, answer):
    name, value = answer.split()
    out, err = demo("--max_tokens", 60, *["--seed", 3] * (name != "seed"), stdin=[line, f"/{name}", "hello"])
    assert err.splitlines()[:2] == [answer, answer]
    arguments = {"--max_tokens": 60, "--seed": 3} | {f"--{name}": value}
    assert f"hello{demo('--prompt', 'hello', *(word for item in arguments.items() for word in item)).out}" == out


@pytest.mark.parametrize("name", ["top_k", "top_p", "seed"])
def test_off_resets_a_setting(demo, name):
    assert demo(stdin=[f"/{name}", f"/{name} 1", f"/{name} off"]).err.split("\n")[::2] == [f"{name} off"] * 2


def test_help_says_what_to_type_and_lists_every_command_and_the_current_values(demo, folder):
    hint, *lines = demo("--top_p", 0.75, stdin=["/temperature 0.6", "/help"]).err.splitlines()[1:]
    assert "Enter alone generates text without a prompt, until Ctrl-C" in hint
    assert [line.split()[0] for line in lines] == ["/temperature", "/top_k", "/top_p", "/repetition_penalty", "/seed",
                                                   "/max_tokens", "/candidates", "/load", "Ctrl-C", "exit"]
    values = ["0.6", "off", "0.75", "1.0", "off", "500", "1", str(folder / "model.pt")]
    assert [line.rsplit(": ", 1)[1] for line in lines[:-2]] == values


@pytest.mark.parametrize("line", ["exit", "quit", "/exit", " exit "])
def test_exit_ends_the_session(demo, line):
    assert demo(stdin=[line, "hello", "/help"]) == ("", "")


def test_load_switches_to_another_model(demo, folder):
    arguments = ["--seed", 1, "--max_tokens", 20]
    out, err = demo(*arguments, stdin=["/load", "hello", f"/load {folder / 'other.pt'}", "hello"])
    assert "model.pt: DevModel" in err and "other.pt: EasyGPT" in err
    before = demo(*arguments, stdin=["hello"]).out
    assert out.startswith(before) and out.removeprefix(before) not in ("", before)


TYPED = [str, '"{}"'.format] + [shlex.quote, lambda path: re.sub(r"([ '])", r"\\\1", path)] * (os.name != "nt")


@pytest.mark.parametrize("typed", TYPED, ids=["as is", "in double quotes", "quoted", "escaped"][: len(TYPED)])
@pytest.mark.parametrize("name", ["my model.pt", "it's here"])
def test_load_accepts_quotes_escapes_and_folders(demo, folder, typed, name):
    path = folder / name
    if name == "it's here":
        path.mkdir(exist_ok=True)
    file = path / "best.pt" if path.is_dir() else path
    file.write_bytes((folder / "other.pt").read_bytes())
    assert "EasyGPT" in demo(stdin=[f"/load {typed(str(path))}"]).err


def test_load_expands_the_home_folder(demo, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert demo(stdin=["/load ~/other.pt", '/load "~/other.pt"']).err.count("EasyGPT") == 2


def test_a_failed_load_keeps_the_current_model(demo, folder):
    (folder / "text.pt").write_text("not a checkpoint")
    arguments = ["--seed", 1, "--max_tokens", 20]
    out, err = demo(*arguments, stdin=[f"/load {folder / 'none.pt'}", f"/load {folder / 'text.pt'}", "hello"])
    assert out == demo(*arguments, stdin=["hello"]).out
    assert re.match(r"error: .*none\.pt.*\nerror: .*text\.pt.*\n20 tokens in", err)


@pytest.mark.parametrize("line, quoted", [
    ("/temperature -1", "temperature cannot be -1"), ("/temperature warm", "temperature cannot be 'warm'"),
    ("/temperature nan", "nan"), ("/temperature off", "'off'"), ("/top_k 0", "top_k cannot be 0"),
    ("/top_k 2.5", "'2.5'"), ("/top_p 1.5", "top_p cannot be 1.5"), ("/seed x", "an integer, or off"),
    ("/repetition_penalty 0", "repetition_penalty cannot be 0"), ("/max_tokens 0", "max_tokens cannot be 0"),
    ("/load /no/such.pt", "such.pt"), ("/load a\0b", r"a\x00b"), ("/load a\x1b[2Jb", r"a\x1b[2Jb"),
    ("/load 'a b", "'a b"), ("/top_k " + "9" * 5000, "99...99"), ("/seed " + "9" * 400, "seed"),
    ("/sing", "unknown command /sing"), ("/", "/help"),
])  # fmt: skip
def test_an_error_is_one_line_and_the_session_continues(demo, line, quoted):
    arguments = ["--seed", 1, "--max_tokens", 5]
    out, err = demo(*arguments, stdin=[line, "hello"])
    assert out == demo(*arguments, stdin=["hello"]).out
    assert re.fullmatch(r"error: .*\n5 tokens in .*\n", err) and quoted in err


# ---- Bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def error_line(demo, capsys):
    """Return a function that runs the command, which must fail with one line, and returns its error message."""

    def run(*arguments, **options):
        with pytest.raises(SystemExit) as end:
            demo(*arguments, **options)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == ""
        return re.fullmatch(r"error: (.*)\n", err)[1]

    return run


@pytest.mark.parametrize("setting, value", [("temperature", -1), ("top_k", 0), ("top_p", 0), ("max_tokens", -5)])
def test_invalid_settings_are_quoted(error_line, setting, value):
    assert f"{setting} cannot be {value}" in error_line(f"--{setting}", value)


def test_an_unknown_kind_of_quantization_is_quoted(error_line):
    assert "'int4'" in error_line("--quantize", "int4")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(error_line, folder, share):
    whole = (folder / "model.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: int(share * len(whole))])
    assert "cut.pt" in error_line(folder / "cut.pt")


def test_a_missing_checkpoint_is_named(error_line, folder):
    assert "none.pt" in error_line(folder / "none.pt")


def test_without_the_shipped_model_the_error_says_how_to_train_one(error_line, folder, monkeypatch):
    monkeypatch.setattr(terminal_demo, "SHIPPED", folder / "none.pt")
    line = error_line()
    assert "none.pt" in line and "python transformer_4d.py" in line and "python train.py config/" in line


def test_an_option_accepts_what_the_command_of_the_same_name_accepts(folder, model, run_main, capsys):
    given = folder / "model.pt", "--device", "cpu", "--prompt", "he", "--max_tokens", "3"
    assert len(run_main(terminal_demo.main, *given, "--top_k", "off")) == 4  # with the newline
    with pytest.raises(SystemExit):
        run_main(terminal_demo.main, *given, "--top_k", "many")
    assert capsys.readouterr().err == "error: top_k cannot be 'many': give an integer, or off\n"
