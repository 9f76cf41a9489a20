"""The tokens: bytes, ten words of one token each, Whisper's specials in their order, the time stamps."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPECIALS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
TIMESTAMPS = 1501
FRAME = 0.02
"""Seconds of one encoder frame, and of one step of the time stamps."""


def tokenizer() -> Tokenizer:
    """Each word is one token that begins with its blank: a bare blank is suppressed by faster-whisper."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        made = "Ġ"
        for letter in word:
            if (made, letter) not in merges:
                merges.append((made, letter))
            made += letter
            vocabulary.setdefault(made, len(vocabulary))
    made_of = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made_of.decoder = decoders.ByteLevel()
    made_of.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    return made_of


def names() -> list[str]:
    """Every token by its number, the time stamps last."""
    by_number = {number: name for name, number in tokenizer().get_vocab().items()}
    plain = [by_number[number] for number in sorted(by_number)]
    return plain + [f"<|{step * FRAME:.2f}|>" for step in range(TIMESTAMPS)]


_NUMBERS = {name: number for number, name in enumerate(names())}
DIGITS = tuple(_NUMBERS["Ġ" + word] for word in WORDS)
BLANK = _NUMBERS["Ġ"]
EOT = _NUMBERS["<|endoftext|>"]
SOT = _NUMBERS["<|startoftranscript|>"]
ENGLISH = _NUMBERS["<|en|>"]
PREVIOUS = _NUMBERS["<|startofprev|>"]
NO_SPEECH = _NUMBERS["<|nospeech|>"]
NO_TIMESTAMPS = _NUMBERS["<|notimestamps|>"]
TIME_ZERO = NO_TIMESTAMPS + 1
SIZE = TIME_ZERO + TIMESTAMPS
