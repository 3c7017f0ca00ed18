"""Whether models speak of the same tokens, and bringing them to one vocabulary."""

from taskbasis.vocabulary.aligning import Aligned, align, check_tokens, tokens_beside
from taskbasis.vocabulary.files import Files
from taskbasis.vocabulary.reading import TOKENIZER, Vocabulary, read_vocabulary

__all__ = [
    "TOKENIZER",
    "Aligned",
    "Files",
    "Vocabulary",
    "align",
    "check_tokens",
    "read_vocabulary",
    "tokens_beside",
]
