"""The settings of a run. They need no torch, so that --help is quick."""

from dataclasses import dataclass, field
from typing import Literal

from models.config import SamplingConfig
from utils.errors import UserError, check_numbers


@dataclass
class DataSettings:
    """The text, and how it becomes tokens."""

    path: str | list[str] = "data/input.txt"
    """A text, several ("[a.txt, b.txt]"), or a folder (.txt, .jsonl, .csv, .parquet); poems (.json); hf:NAME or
    hf:NAME:CONFIG of Hugging Face; or a folder with train.bin and val.bin. The default is fetched if it is not there
    (tiny Shakespeare)."""
    column: str | None = None
    """The column that holds the text, where there are columns; None: text, or the only one there is."""
    encoding: str | None = None
    delimiter: str | None = None
    document_separator: str | None = None
    val_path: str | list[str] | None = None
    dtype: Literal["uint16", "uint32", "int64"] | None = None
    tokenizer: str = "char"
    """char: the characters of the text; bpe: a BPE trained on it; gpt2: GPT-2's; or a tokenizer.json."""
    vocab_size: int = 20_000
    """Tokens of a BPE that is trained."""
    max_bytes: int = 20_000_000
    """Of more text than this, so much is sampled to train a BPE on. It takes about 100 times as much memory."""
    windows: Literal["random", "shuffled", "sliding"] = "random"
    """Where context windows start. random: anywhere; shuffled: each epoch covers the text once, in random order from a
    random offset; sliding: every `stride` tokens, each once per epoch, for small texts."""
    stride: int | None = None
    """Tokens between the starts of sliding windows, at most block_size; None: 128, or block_size if that is less."""

    def __post_init__(self):
        check_numbers(self, positive=("vocab_size", "max_bytes", "stride"))
        if not self.path:
            raise UserError("data.path is empty: give a text")


@dataclass
class ModelSettings:
    """The model: a class of models/zoo.py, and what to change of it."""

    name: str = "BardGPT"
    """A class of models/zoo.py."""
    n_embd: int | None = None
    """Width; None, here and below: that of the class."""
    block_size: int | None = None
    """Context."""
    n_blocks: int | None = None
    """Depth."""
    num_heads: int | None = None
    """Attention heads in a block."""
    num_kv_heads: int | None = None
    """Heads of keys and values in a block."""
    n_hidden: int | None = None
    """Width of the feed-forward's inside."""
    dropout: float | None = None
    """Share of activations set to zero in training."""
    vocab_size: int | None = None
    """Tokens that the model has room for; None: those of the tokenizer. A multiple of 64 is faster on a GPU."""


@dataclass
class OptimSettings:
    """The optimizer and its learning rates."""

    name: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices in the blocks and AdamW for all else, or AdamW for everything."""
    muon_lr: float = 0.02
    """Highest learning rate of Muon."""
    adamw_lr: float = 0.005
    """Highest learning rate of AdamW. About 0.001 or less when it has everything."""
    weight_decay: float = 0.1
    """Pull of the matrices in the blocks towards zero."""
    momentum: float = 0.9
    """Muon's momentum."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averages of the gradient and of its square."""
    schedule: Literal["cosine", "linear", "wsd"] = "linear"
    """How the learning rates fall after the warm-up; wsd (warm-up, stable, decay): only in the last fifth, linearly."""
    warmup_iters: int = 20
    """Steps in which the learning rates rise."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.998; best.pt gets the averaged weights where
    they are better. None: no average."""
    final_lr: float = 0.0
    """What is left of the learning rates at the end, as a share of the highest."""

    def __post_init__(self):
        check_numbers(self, positive=("muon_lr", "adamw_lr"),
                      not_negative=("weight_decay", "momentum", "warmup_iters", "final_lr"))
        for name, values in (("momentum", [self.momentum]), ("betas", self.betas), ("ema", [self.ema or 0.0])):
            if not all(0 <= value < 1 for value in values):
                raise UserError(f"{name} cannot be {getattr(self, name)}: give numbers from 0 to below 1")
        if self.final_lr > 1:
            raise UserError(f"final_lr cannot be {self.final_lr}: it is a share of the highest, give 1 or less")


@dataclass
class TrainingSettings:
    """The loop."""

    batch_size: int | Literal["auto"] = 16
    """Windows in one micro-batch; auto: 16 times accumulation windows a step, in as few micro-batches as fit."""
    accumulation: int = 1
    """Micro-batches in one step."""
    max_iters: int = 1000
    """Steps."""
    eval_interval: int = 250
    """Steps between evaluations; each one saves."""
    grad_clip: float = 1.0
    """Greatest length of the gradient."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better loss; None: never."""
    seed: int = 1337
    """The same seed on the same machine gives the same numbers, on a CPU to the last bit."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: the first of CUDA, MPS and CPU that is there."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What matrices are multiplied in; auto: what the hardware is fastest in and safe with."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """torch.compile; auto: on CUDA."""
    activation_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, a third more time."""

    def __post_init__(self):
        positive = ("accumulation", "max_iters", "eval_interval", "grad_clip", "patience")
        check_numbers(self, positive + ("batch_size",) * (self.batch_size != "auto"), not_negative=("seed",))
        if self.seed >= 2**63:
            raise UserError(f"seed cannot be {self.seed}: give a whole number from 0 to below 2^63")


@dataclass
class OutputSettings:
    """What the run writes."""

    folder: str = "checkpoints"
    """The run writes to a folder of its own in here."""
    half: bool = False
    """Keep best.pt in float16: half the size."""
    sample_tokens: int = 200
    """Tokens to write after each evaluation."""
    tensorboard: bool = False
    """Write for TensorBoard, too."""

    def __post_init__(self):
        check_numbers(self, not_negative=("sample_tokens",))


@dataclass
class Settings:
    """A run."""

    run: str | None = None
    """Its name; None: that of the YAML file."""
    resume: bool = False
    """Continue where the run stopped."""
    init: str | None = None
    """A checkpoint whose weights, architecture and tokenizer a new run starts from, for training on another text."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
