"""What one could use instead of BPE, with the same small interface: `encode`, `decode`, `vocab_size`.

Characters, bytes and words need only the standard library. Unigram (Kudo, 2018, "Subword Regularization") is
trained and applied by Hugging Face's tokenizers.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from lmlib.tokenization.naive import pretokenize

UNKNOWN = "\ufffd"  # what an unknown character or word is decoded to


class Codec(Protocol):
    """What every tokenizer of this package can do."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, as far as it can be known."""


class ByteTokenizer:
    """One token a UTF-8 byte: 256 ids, nothing is unknown, and sequences are long."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of the text."""
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the bytes. Raises ValueError for an id outside 0..255."""
        return bytes(ids).decode("utf-8", "replace")


class CharacterTokenizer:
    """One token a character that the training text holds.

    byte_fallback: characters that it does not hold become their UTF-8 bytes, which have the ids 0..255 (as in
        Llama's SentencePiece vocabulary). Without it, id 0 stands for all of them and they are lost.
    """

    def __init__(self, text: str, byte_fallback: bool = False) -> None:
        if not text:
            raise ValueError("text is empty: there are no characters to learn")
        self.byte_fallback = byte_fallback
        self._first = 256 if byte_fallback else 1
        self._characters = sorted(set(text))
        self._ids = {character: self._first + i for i, character in enumerate(self._characters)}

    @property
    def vocab_size(self) -> int:
        """Distinct characters, plus 256 bytes or the one unknown token."""
        return self._first + len(self._characters)

    def encode(self, text: str) -> list[int]:
        """One id a character; an unknown character is 0, or one id a byte."""
        ids: list[int] = []
        for character in text:
            known = self._ids.get(character)
            if known is not None:
                ids.append(known)
            elif self.byte_fallback:
                ids += character.encode()
            else:
                ids.append(0)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text; U+FFFD for what was unknown. Raises ValueError for an id not in the vocabulary."""
        data = bytearray()
        for id_ in ids:
            if not 0 <= id_ < self.vocab_size:
                raise ValueError(f"id {id_} is not in the vocabulary: ids go to {self.vocab_size - 1}")
            if id_ >= self._first:
                data += self._characters[id_ - self._first].encode()
            elif self.byte_fallback:
                data.append(id_)
            else:
                data += UNKNOWN.encode()
        return data.decode("utf-8", "replace")


class WordTokenizer:
    """One token a word (pretoken of GPT-2's pattern), for the most frequent words of a text; id 0 is unknown.

    vocab_size: at most this many ids, the unknown token included.
    """

    def __init__(self, text: str, vocab_size: int) -> None:
        if vocab_size < 2:
            raise ValueError(
                f"vocab_size must be at least 2 (the unknown token and a word), got {vocab_size}"
            )
        if not text:
            raise ValueError("text is empty: there are no words to learn")
        counts = Counter(pretokenize(text))
        # Equal counts in the order of the words, so that the vocabulary does not depend on the text's order.
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        self.words = [UNKNOWN, *ordered[: vocab_size - 1]]
        self._ids = {word: id_ for id_, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        """Known words and the unknown token."""
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """One id a word, 0 for an unknown one."""
        return [self._ids.get(word, 0) for word in pretokenize(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, with U+FFFD for each unknown word. Raises ValueError for an id not in the vocabulary."""
        words = []
        for id_ in ids:
            if not 0 <= id_ < len(self.words):
                raise ValueError(f"id {id_} is not in the vocabulary: ids go to {self.vocab_size - 1}")
            words.append(self.words[id_])
        return "".join(words)


class UnigramTokenizer:
    """Unigram on bytes, by Hugging Face's tokenizers: the pieces of a text that are likeliest together.

    It starts with many pieces and drops those that the text's likelihood misses least, the other way round
    from BPE. Bytes as in GPT-2's files, so that nothing is unknown.
    """

    def __init__(self, texts: Iterable[str], vocab_size: int) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocab_size < 256:
            raise ValueError(f"vocab_size must be at least 256, one for each byte, got {vocab_size}")
        texts = list(texts)
        if not any(texts):
            raise ValueError("texts hold no text: there is nothing to learn")
        self._tokenizer = Tokenizer(models.Unigram())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(texts, trainer)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of the likeliest segmentation."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the pieces."""
        return str(self._tokenizer.decode(list(ids)))
