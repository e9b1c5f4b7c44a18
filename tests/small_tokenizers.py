"""Tiny SentencePiece-style tokenizers, trained here, and tokenizer files with mistakes."""

import json
import random

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SP_TEXTS = [f"The {a} saw {b}: {c}\n" for a in ("fox", "小猫", "owl") for b in ("the sea", "月亮", "a star")
            for c in ("it isn't far.", "床前明月光，疑是地上霜。", "naïve café", "12 345", "  no")]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL_NAMES = ("<unk>", "<s>", "</s>")


def sp_vocab_and_merges(texts=SP_TEXTS, n=500):
    """A vocabulary in the order of Llama 2's: special tokens, bytes, merged tokens as learned, characters."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    library.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=n, show_progress=False))
    model = json.loads(library.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].get)
    ordered = [token for token in learned if len(token) > 1] + [token for token in learned if len(token) == 1]
    vocab = {token: i for i, token in enumerate([*SPECIAL_NAMES, *BYTES, *ordered])}
    return vocab, [tuple(merge) for merge in model["merges"]]


SP_VOCAB, SP_MERGES = sp_vocab_and_merges()


def sp_library(scheme, more=()):
    """The library's tokenizer as in Llama 2 (the scheme "normalizer"), or with the Metaspace of this prepend_scheme;
    `more` special tokens follow its vocabulary."""
    library = Tokenizer(models.BPE(SP_VOCAB, SP_MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL_NAMES] + [*more])
    decoded = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme == "normalizer":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme == "always")
    if scheme != "never":
        decoded.append(decoders.Strip(" ", 1, 0))
    library.decoder = decoders.Sequence(decoded)
    library.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    return library


def mutations(content, n, settings):
    """Yield the bytes of a tokenizer.json n times, each with a mistake, often in its first `settings` bytes or near its
    end."""
    draw = random.Random(0)
    snippets = [b"null", b"[]", b"{}", b"-1", b"1e9", b'"Sequence"', b'"##"', b"true", b"\xff", b"0", b'"']
    for _ in range(n):
        at = draw.choice((draw.randrange(len(content)), draw.randrange(settings), -draw.randrange(1, 400)))
        yield content[:at] + draw.choice(snippets) + content[at:][draw.randrange(8) :]
