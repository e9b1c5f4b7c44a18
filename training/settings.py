"""The settings of a run. This module does not import torch, so that --help is quick."""

from dataclasses import dataclass, field
from typing import Literal

from models.config import ReplyConfig
from utils.errors import UserError, check_numbers
from utils.files import PROJECT

FORBIDDEN = set('/\\<>:"|?*')  # in file names on some systems
WINDOWS_DEVICES = ("con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10)))


@dataclass
class DataSettings:
    """The text, and how it is tokenized."""

    path: str | list[str] = str(PROJECT / "data" / "input.txt")
    """A text file; a table (.jsonl, .csv, .tsv, .parquet); a .json list of texts; several of these, as
    "[a.txt, b.txt]"; a folder of them; hf:NAME or hf:NAME:CONFIG, a dataset on the Hugging Face hub; or a folder with
    train.bin and val.bin. Tiny Shakespeare is downloaded if the default does not exist."""
    val_path: str | list[str] | None = None
    """A separate validation text; None: about a tenth of `path`."""
    column: str | None = None
    """Column of the text in a table; None: `text`, or the only one."""
    label_column: str | None = None
    """Column of the label, for classification; None: `label`."""
    split_seed: int = 0
    """For classification: seed of the random split of the reviews into training, validation (5%) and test (10%)."""
    auxiliary_lm: float = 0.0
    """For classification. 0: the label is predicted at the last token of a text. Above 0: at all tokens, except for
    this fraction of them, chosen at random, where the next token is predicted (an auxiliary language model)."""
    bpe_dropout: float = 0.0
    """For BPE tokenizers: probability that a token in training is split into the two tokens that it was merged from,
    recursively (BPE dropout)."""
    both_directions: bool = False
    """For classification, and for a language model that a classifier starts from: in training, each text is read
    forward or backward at random, and texts are classified in both directions."""
    mask_padding: bool = True
    """For classification. true: the label is predicted at the last token of a text; false: at the end of the context,
    after padding, which the model has to learn to ignore."""
    preview: int = 0
    """Number of training examples to print, with the predicted tokens highlighted."""
    encoding: str | None = None
    """Encoding of the files, such as gb18030; None: detected."""
    delimiter: str | None = None
    """Delimiter of a .csv file, one character or `tab`; None: detected."""
    document_separator: str | None = None
    """Separator of the documents in a .txt file, such as <|endoftext|>; None: the file is one document."""
    dtype: Literal["uint16", "uint32", "int64"] | None = None
    """dtype of train.bin and val.bin; None: uint16, or uint32 for more than 65,536 tokens."""
    tokenizer: str = "char"
    """char: one token per character; bpe: byte-pair encoding trained on the text; gpt2: GPT-2's; or the path of a
    tokenizer.json, a Hugging Face folder or a checkpoint."""
    vocab_size: int = 20_000
    """Vocabulary size of a BPE tokenizer trained on the text."""
    max_bytes: int = 20_000_000
    """Size, in bytes, of the sample of a text that a BPE tokenizer is trained on, in about 100 times as much memory."""
    windows: Literal["random", "shuffled", "sliding"] = "random"
    """Where sequences start in the text. random: anywhere; shuffled: each epoch covers the text once, in random order
    from a random offset; sliding: every `stride` tokens, each once per epoch, for small texts."""
    stride: int | None = None
    """Tokens between the starts of sliding sequences, at most block_size; None: 128, or block_size if that is less."""

    def __post_init__(self):
        check_numbers(self, positive=("vocab_size", "max_bytes", "stride"), not_negative=("preview", "split_seed"))
        if self.both_directions and not self.mask_padding:
            raise UserError("both_directions needs mask_padding: backward, a text would start with its padding")
        for name in ("auxiliary_lm", "bpe_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} cannot be {getattr(self, name)}: use a number from 0 to below 1")
        if not self.path or self.val_path in ("", []):
            raise UserError("path is empty: pass a text")


@dataclass
class ModelSettings:
    """The model: a class in models/zoo.py, and changes to its configuration."""

    name: str = "BardGPT"
    """A class in models/zoo.py."""
    n_embd: int | None = None
    """Embedding width; None, here and below: as in the class."""
    block_size: int | None = None
    """Context length, in tokens."""
    n_blocks: int | None = None
    """Number of Transformer blocks."""
    num_heads: int | None = None
    """Attention heads per block."""
    num_kv_heads: int | None = None
    """Key-value heads per block."""
    n_hidden: int | None = None
    """Width of the hidden layer of the feed-forward network."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values."""
    dropout: float | None = None
    """Dropout probability."""
    vocab_size: int | None = None
    """Vocabulary size; None: that of the tokenizer. A multiple of 64 is faster on a GPU."""


@dataclass
class OptimSettings:
    """The optimizer and its learning rates."""

    name: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices in the blocks and AdamW for all other weights; adamw: AdamW for all weights."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon."""
    adamw_lr: float = 0.005
    """Peak learning rate of AdamW; at most about 0.001 if it trains all weights."""
    weight_decay: float = 0.1
    """Weight decay of the matrices in the blocks."""
    momentum: float = 0.9
    """Momentum of Muon."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's averages of the gradient and of its square."""
    schedule: Literal["cosine", "linear", "wsd"] = "linear"
    """Decay of the learning rates after the warmup; wsd (warmup, stable, decay): linear, but only in the last fifth."""
    warmup_iters: int = 20
    """Steps of linear warmup."""
    final_lr: float = 0.0
    """Learning rates at the end, as a fraction of their peak."""
    ema: float | None = None
    """Decay rate of an exponential moving average of the weights, such as 0.998; best.pt has the averaged weights if
    their loss is lower. None: no average."""

    def __post_init__(self):
        check_numbers(self, positive=("muon_lr", "adamw_lr"),
                      not_negative=("weight_decay", "momentum", "warmup_iters", "final_lr", "ema"))
        for name, values in (("momentum", [self.momentum]), ("betas", self.betas), ("ema", [self.ema or 0.0])):
            if not all(0 <= value < 1 for value in values):
                raise UserError(f"{name} cannot be {getattr(self, name)}: use numbers from 0 to below 1")
        if self.final_lr > 1:
            raise UserError(f"final_lr cannot be {self.final_lr}: it is a fraction of the peak, use 1 or less")


@dataclass
class TrainingSettings:
    """The training loop."""

    batch_size: int | Literal["auto"] = 16
    """Sequences per micro-batch; auto: 16 * accumulation per step, in as few micro-batches as fit in memory."""
    accumulation: int = 1
    """Micro-batches per step (gradient accumulation)."""
    max_iters: int = 1000
    """Training steps."""
    epochs: int | None = None
    """Train for this many epochs and evaluate after each: sets `max_iters` and `eval_interval`."""
    eval_interval: int = 250
    """Steps between evaluations, each of which saves a checkpoint."""
    grad_clip: float = 1.0
    """Maximum gradient norm."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better validation loss; None: never."""
    seed: int = 1337
    """Fixed seed: reproducible results on one machine, on a CPU bit for bit with the same number of threads."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: the first of CUDA, MPS and CPU that is available."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Compute dtype of matrix products; auto: the fastest one that is safe on the hardware."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """torch.compile; auto: on CUDA, for runs long enough to make up for the compile time."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """With torchrun. ddp: each rank has the whole model; fsdp: weights, gradients and optimizer states are sharded over
    the ranks (FSDP2); auto: ddp if that fits in memory."""
    trainable_blocks: int | None = None
    """Train only this many of the last blocks, the final norm, and the head unless it is tied; None: everything."""

    def __post_init__(self):
        check_numbers(self, positive=("accumulation", "max_iters", "epochs", "eval_interval", "grad_clip",
                                      "patience"),
                      not_negative=("seed", "trainable_blocks"))
        if self.batch_size != "auto":
            check_numbers(self, positive=("batch_size",))
        for name in ("batch_size", "accumulation", "max_iters", "eval_interval", "seed"):
            value = getattr(self, name)
            if value != "auto" and value >= 2**63:
                raise UserError(f"{name} cannot be {value}: use an integer below 2^63")


@dataclass
class LoraSettings:
    """LoRA: train small adapters of some matrices, and freeze the weights of `init` (Hu et al., 2021)."""

    rank: int | None = None
    """Rank of the adapters; None: no LoRA."""
    alpha: float = 16.0
    """The product of the two matrices of an adapter is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("qkv", "out")
    """Matrices with adapters: qkv, out (attention), up, down, gate (feed-forward), head."""
    merge: bool = True
    """true: best.pt is a complete model, with the adapters merged into its matrices; false: it has only the trained
    weights, and is used together with the checkpoint `init`."""

    def __post_init__(self):
        check_numbers(self, positive=("rank", "alpha"))


@dataclass
class OutputSettings:
    """The files that a run writes, and the samples that it prints."""

    folder: str = str(PROJECT / "checkpoints")
    """The folder that contains the folders of all runs."""
    half: bool = False
    """Save best.pt in float16, at half the size."""
    sample_tokens: int = 200
    """Maximum length, in tokens, of the samples generated after each evaluation, except that of random weights."""
    tensorboard: bool = False
    """Also write TensorBoard logs."""

    def __post_init__(self):
        check_numbers(self, not_negative=("sample_tokens",))


@dataclass
class Settings:
    """All settings of a run."""

    run: str = "run"
    """Name of the run, and of its folder; by default, the name of the YAML file."""
    resume: bool = False
    """Resume the run from its last.pt, with its own settings if no YAML file is given."""
    init: str | None = None
    """Fine-tune: start from the weights, architecture and tokenizer of a checkpoint, on another text or task. Or of a
    model of another project: its name on the Hugging Face hub (gpt2, gpt2-medium, gpt2-large, gpt2-xl, OWNER/NAME), its
    folder, the folder of OpenAI's GPT-2, a ckpt.pt of nanoGPT (before June 2023: ckpt.pt:tanh), or a .bin of llama2.c.
    model.block_size may be shorter, and model.qkv_bias may differ."""
    task: Literal["language", "dialogue", "poem", "instruction", "classification"] = "language"
    """What the model learns. language: to continue text; dialogue: to reply to messages; poem: to write a poem for a
    title; instruction: to follow instructions (Alpaca format); classification: to label texts, such as reviews."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    sampling: ReplyConfig = field(default_factory=ReplyConfig)

    def __post_init__(self):
        if self.lora.rank is not None and self.init is None:
            raise UserError("--lora.rank needs --init: the checkpoint whose weights the adapters change")
        if self.lora.rank is not None and self.training.trainable_blocks is not None:
            raise UserError("--lora.rank and --training.trainable_blocks exclude each other: LoRA freezes all blocks")
        clean = self.run.strip(" .") == self.run and self.run.isprintable() and not FORBIDDEN & set(self.run)
        if not self.run or not clean or self.run.partition(".")[0].lower() in WINDOWS_DEVICES:
            raise UserError(f"--run cannot be {self.run!r}: use a name that every system allows for a folder, and "
                            "--output.folder for the folder that contains it")
        if len(self.run.encode("utf-8", "replace")) > 200:
            raise UserError("--run is too long: use at most 200 bytes")
