"""A GPT in one file: it learns to predict the next character of a text, then generates text of its own.

Run `python transformer_4d.py`; every field of `Config` is an option, as in `--minutes 2`. Shapes: B batch, T time
(context length), C n_embd, nh num_heads, hs head size (C / nh), V vocabulary. "4d" is attention's (B, nh, T, hs)."""
# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.9", "numpy", "tqdm"]
# ///
import argparse
import io
import math
import os
import sys
import time
import timeit
import warnings
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm, trange

HERE = Path(__file__).resolve().parent
TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
DEVICES = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
MAX_ITERS = 3000 if DEVICES["cuda"] else 1500  # with more steps, the defaults overfit tiny Shakespeare

class UserError(Exception):
    """An error the user can fix: printed as one line, without a traceback."""
def require(condition, message):
    if not condition:
        raise UserError(message)

@dataclass
class Config:  # the defaults give 3,691,073 parameters for the 65 characters of tiny Shakespeare
    n_embd: int = 384  # embedding width (C)
    block_size: int = 256  # context length (T)
    n_blocks: int = 2  # number of Transformer blocks
    num_heads: int = 4  # attention heads per block (nh); must divide n_embd
    dropout: float = 0.1 if DEVICES["cuda"] else 0.0  # a GPU trains for more steps, and would overfit without it
    minutes: float = 10.0  # time budget, from which max_iters is chosen
    max_iters: int = 0  # training steps; 0: as many as fit into `minutes`, but at most MAX_ITERS
    batch_size: int = 16  # sequences per step (B)
    muon_lr: float = 0.02  # initial learning rate of the matrices in the blocks; decays linearly to zero
    adamw_lr: float = 0.005  # initial learning rate of everything else; decays likewise
    weight_decay: float = 0.1  # of the matrices in the blocks
    eval_interval: int = 250  # steps between evaluations
    max_new_chars: int = 500  # length of the sample printed at the end
    temperature: float = 0.8  # of the sample; lower is more predictable
    seed: int = 1337
    device: str = next(name for name, available in DEVICES.items() if available)

    def __post_init__(self):
        may_be_zero = ("dropout", "max_iters", "weight_decay", "max_new_chars", "seed")
        for name, value in vars(self).items():
            possible = name == "device" or 0 < value < 2**63 or value == 0 and name in may_be_zero
            require(possible, f"{name} cannot be {value}: use a positive number")
        require(self.dropout < 1 and self.temperature >= 0.001, "dropout must be < 1, and temperature >= 0.001")
        require(self.n_embd % self.num_heads == 0, f"num_heads {self.num_heads} does not divide n_embd {self.n_embd}")
        require(DEVICES.get(self.device), f"device {self.device} is not available on this machine")
# ---- Text ------------------------------------------------------------------------------------------------------------
def load_data(config):
    """Return the vocabulary of data/input.txt, a sorted string, and its training and validation token ids, (N) each."""
    path = HERE / "data" / "input.txt"
    try:
        if not path.exists():
            download_tiny_shakespeare(path)
        text = path.read_bytes().decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): save a text there, encoded as UTF-8") from None
    vocab = "".join(sorted(set(text)))
    tokens = torch.tensor([vocab.index(character) for character in text], device=config.device)
    require(len(text) > 10 * config.block_size, f"{path} is too short: use over {10 * config.block_size} characters")
    return vocab, *tokens.tensor_split([int(0.9 * len(tokens))])

def download_tiny_shakespeare(path):
    try:
        from data.known_texts import fetch_tiny_shakespeare  # tries several mirrors
        fetch_tiny_shakespeare(path)
    except ImportError:  # this file was copied without the project
        path.parent.mkdir(exist_ok=True)
        torch.hub.download_url_to_file(TINY_SHAKESPEARE, path, hash_prefix="86c4e6aa")
# ---- Model -----------------------------------------------------------------------------------------------------------
class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al., 2017, section 3.2) with QK norm (Dehghani et al., 2023)."""
    def __init__(self, config):
        super().__init__()
        C, self.num_heads = config.n_embd, config.num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(C, C, bias=False) for _ in range(4))
        nn.init.zeros_(self.out.weight)  # stable at initialization: a block starts as the identity
    def forward(self, x):
        q, k, v = (f(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        T, hs = q.shape[2:]  # q, k, v: (B, T, C) -> (B, T, nh, hs) -> (B, nh, T, hs)
        q, k = F.layer_norm(q, (hs,)), F.layer_norm(k, (hs,))  # QK norm: bounds the scores
        mask = torch.full((T, T), -math.inf, dtype=v.dtype, device=v.device).triu(1)  # hides later positions
        scores = (q * hs**-0.5) @ k.mT + mask  # (B, nh, T, T)
        y = F.softmax(scores, dim=-1) @ v  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, nh, T, hs) -> (B, T, nh, hs) -> (B, T, C)

class FeedForward(nn.Module):
    """Two linear layers with a squared ReLU (So et al., 2021) in between, applied to each position independently."""
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        nn.init.zeros_(self.down.weight)
    def forward(self, x):
        return self.down(F.relu(self.up(x)).square())  # (B, T, C) -> (B, T, 4C) -> (B, T, C)

class Block(nn.Module):
    """Attention and feed-forward, each after a LayerNorm and inside a residual connection (Xiong et al., 2020)."""
    def __init__(self, config):
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
    def forward(self, x):
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # (B, T, C)

class TransformerModel(nn.Module):
    """Embeddings, blocks, a final norm, and a linear head that predicts the next character at every position."""
    def __init__(self, config, vocab_size):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.final_norm, self.head = nn.LayerNorm(config.n_embd), nn.Linear(config.n_embd, vocab_size)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        nn.init.zeros_(self.head.weight)  # initial predictions are nearly uniform

    def forward(self, x, y=None):
        """Logits (B, T, V) for token ids x (B, T), and the mean cross-entropy if targets y (B, T) are given."""
        h = self.dropout(self.token_embedding(x) + self.position_embedding.weight[: x.size(1)])  # (B, T, C) + (T, C)
        for block in self.blocks:
            h = block(h)
        logits = self.head(self.final_norm(h)).float()  # (B, T, V)
        return logits, None if y is None else F.cross_entropy(logits.flatten(0, 1), y.flatten())
# ---- Optimizer -------------------------------------------------------------------------------------------------------
class Muon:
    """Orthogonalized momentum (Jordan et al., 2024): an update changes a matrix equally in all its directions."""
    def __init__(self, matrices, lr, weight_decay, dtype, momentum=0.9):
        self.lr, self.weight_decay, self.dtype, self.momentum = lr, weight_decay, dtype, momentum
        self.stacks = [[m for m in matrices if m.shape == shape] for shape in {m.shape for m in matrices}]
        self.averages = [torch.zeros_like(torch.stack(stack)) for stack in self.stacks]  # (N, rows, columns) each
    @torch.no_grad()
    def step(self):
        for stack, average in zip(self.stacks, self.averages, strict=True):
            gradients = torch.stack([matrix.grad for matrix in stack])  # (N, rows, columns)
            average.lerp_(gradients, 1 - self.momentum)
            updates = orthogonalize(gradients.lerp(average, self.momentum).to(self.dtype)).float()  # Nesterov
            updates *= self.lr * max(1, updates.size(1) / updates.size(2)) ** 0.5
            for matrix, update in zip(stack, updates, strict=True):
                matrix.mul_(1 - self.lr * self.weight_decay).sub_(update)

def orthogonalize(x):
    """Bring all singular values of the matrices x (N, rows, columns) close to 1 by five Newton-Schulz iterations."""
    if x.size(1) > x.size(2):
        return orthogonalize(x.mT).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):  # x <- 3.4445 x - 4.7750 (x x^T) x + 2.0315 (x x^T)^2 x
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x
# ---- Training --------------------------------------------------------------------------------------------------------
def cuda_graph(step):
    """Record the CUDA kernels of `step()`; return a function that launches all at once, faster than one by one."""
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # deleting a graph frees the workspaces of its stream
    with torch.cuda.stream(stream):
        for _ in range(3):  # warmup: libraries allocate workspaces in their first calls, which cannot be recorded
            step()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay

def make_train_step(model, config, dtype):
    """Return train_step(sequences, lr_factor), which trains on sequences (B, T + 1) and returns the loss, a tensor."""
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # AdamW outside a graph
    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "blocks" not in name]
    muon_lr, adamw_lr, last_loss = torch.zeros(3, device=config.device)  # tensors, for the CUDA graph
    muon = Muon(matrices, muon_lr, config.weight_decay, dtype)
    adamw = torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True, capturable=True)
    batch = torch.zeros(config.batch_size, config.block_size + 1, dtype=torch.long, device=config.device)  # (B, T + 1)
    def update():
        _, loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        muon.step()
        adamw.step()
        model.zero_grad()
        last_loss.copy_(loss.detach())
    run_update = cuda_graph(update) if config.device == "cuda" else update  # its warmup changed states: zero them
    torch._foreach_zero_([*muon.averages, *(x for state in adamw.state.values() for x in state.values())])
    def train_step(sequences, lr_factor):
        muon_lr.fill_(config.muon_lr * lr_factor)
        adamw_lr.fill_(config.adamw_lr * lr_factor)
        batch.copy_(sequences)
        run_update()
        return last_loss
    return train_step

@torch.no_grad()
def evaluate(model, tokens, T, batch_size):
    """Mean loss over all of `tokens` (N), split into consecutive sequences of length T."""
    x = F.pad(tokens[:-1], (0, (1 - len(tokens)) % T)).view(-1, T).split(batch_size)  # (B, T) each
    y = F.pad(tokens[1:], (0, (1 - len(tokens)) % T), value=-100).view(-1, T).split(batch_size)  # -100: no target
    model.eval()
    total = sum(model(a, b)[1] * (b >= 0).sum() for a, b in zip(x, y, strict=True))
    model.train()
    return total.item() / (len(tokens) - 1)

def train(config):
    """Train on data/input.txt, keep the best weights in checkpoints/, and print a sample."""
    B, T, device = config.batch_size, config.block_size, config.device
    vocab, train_tokens, val_tokens = load_data(config)
    torch.manual_seed(config.seed)
    model = TransformerModel(config, len(vocab)).to(device)
    bfloat16 = torch.cuda.is_bf16_supported(False) if device == "cuda" else torch.cpu._is_avx512_bf16_supported()
    model.forward = torch.autocast(device, torch.bfloat16, enabled=bfloat16, cache_enabled=False)(model.forward)
    dtype = torch.bfloat16 if bfloat16 else torch.float32  # of matrix products
    n_params = sum(weight.numel() for weight in model.parameters())
    print(f"{len(train_tokens):,} training characters, {len(vocab)} distinct; {n_params:,} weights; {device}, {dtype}")
    sequences = train_tokens.unfold(0, T + 1, 1)  # (N, T + 1), a view: one sequence starts at each character
    train_step = make_train_step(model, config, dtype)  # measures the speed: lr_factor 0 changes no weight
    seconds = timeit.timeit(lambda: train_step(sequences[torch.randint(len(sequences), (B,))], 0).item(), number=10)
    max_iters = config.max_iters or min(MAX_ITERS, 1 + int(10 * 57 * config.minutes / seconds))  # 5% for evaluations
    print(f"steps: {max_iters}; to repeat this run exactly: --max_iters {max_iters}")
    n = len(sequences) // T  # each epoch covers the text once: every T-th sequence, from a random offset
    starts = torch.cat([torch.randint(T, ()) + T * torch.randperm(n) for _ in range(max_iters * B // n + 1)]).to(device)
    path = HERE / "checkpoints" / f"{time.strftime('%Y%m%d-%H%M%S')}.pt"
    sizes = {name: getattr(config, name) for name in ("n_embd", "block_size", "n_blocks", "num_heads", "dropout")}
    checkpoint = {"format_version": 1, "model_class": "TransformerModel", "tokenizer": {"kind": "char", "vocab": vocab},
                  "config": sizes | {"vocab_size": len(vocab), "qk_norm": True}, "weights": model.state_dict()}
    losses, step = {}, -1
    train_step = make_train_step(model, config, dtype)  # with new optimizer states
    def evaluate_and_save(step):
        loss = evaluate(model, val_tokens, T, B)
        tqdm.write(f"step {step:5}  validation loss {loss:.4f}")
        require(math.isfinite(loss), f"the loss is {loss}: use a lower muon_lr and adamw_lr")
        if loss < min(losses.values(), default=math.inf):
            path.parent.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)  # the current weights; to a file, it would not report a full disk
            with ExitStack() as cleanup:
                cleanup.callback(path.with_suffix(".partial").unlink, missing_ok=True)  # what a full disk leaves
                path.with_suffix(".partial").write_bytes(buffer.getvalue())
                path.with_suffix(".partial").replace(path)  # atomic: a kill leaves the previous checkpoint intact
        losses[step] = loss
    with suppress(KeyboardInterrupt):  # Ctrl-C ends the training early
        for step in (bar := trange(max_iters, unit=" tokens", unit_scale=B * T)):
            if step % config.eval_interval == 0:
                evaluate_and_save(step)
            loss = train_step(sequences[starts[step * B : (step + 1) * B]], lr_factor=1 - step / max_iters)
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    evaluate_and_save(step + 1)
    best = min(losses, key=losses.get)
    model.load_state_dict(torch.load(path, weights_only=True)["weights"])
    print_sample(model.eval(), vocab, config)
    trend = "still falling" if best == step + 1 else f"rose after step {best}: overfitting"
    print(f"\n\nvalidation loss {losses[best]:.4f}, {trend}; uniform baseline ln V = {math.log(len(vocab)):.4f}")
    print(f"talk to it: python terminal_demo.py {path}\nis its loss normal? python estimate.py {path}", flush=True)

@torch.no_grad()
def print_sample(model, vocab, config):
    """Print a line break, and then characters drawn one after another from the model's predictions."""
    ids = torch.tensor([[max(0, vocab.find("\n"))]], device=config.device)  # (1, T)
    for _ in range(config.max_new_chars):
        print(vocab[ids[0, -1]], end="", flush=True)
        logits, _ = model(ids[:, -config.block_size :])
        next_id = torch.multinomial(F.softmax(logits[:, -1] / config.temperature, dim=-1), 1)  # (1, V) -> (1, 1)
        ids = torch.cat((ids, next_id), dim=1)  # (1, T + 1)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, field in Config.__dataclass_fields__.items():
        parser.add_argument(f"--{name}", type=field.type, default=field.default, help="%(default)s")
    sys.stdin, sys.stdout, sys.stderr = (f or open(os.devnull, "w") for f in (sys.stdin, sys.stdout, sys.stderr))
    sys.stdout.reconfigure(errors="replace")  # a Windows console may lack some of the text's characters
    try:
        train(Config(**vars(parser.parse_args())))
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError, RuntimeError) as error:
        oom = isinstance(error, RuntimeError) and ("out of memory" in str(error) or "tried to allocate" in str(error))
        if isinstance(error, RuntimeError) and not oom:
            raise
        if isinstance(error, BrokenPipeError):  # the reader of the output has ended, as in `| head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit(2, f"error: {'out of memory: reduce batch_size, block_size or n_embd' if oom else error}\n")

if __name__ == "__main__":
    main()
