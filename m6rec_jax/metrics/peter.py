"""Likeness of explanations as PETER reports it (Li et al., 2021), to stand in the paper's table.

PETER compares what its model can say: words between spaces, of which all but the most frequent are
`<unk>`, the first 15 of each text. M6-Rec compares itself with those metrics (paper, section 4), so
texts of another model need the same form before they are measured.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal

from m6rec_jax.metrics import generation
from m6rec_jax.metrics.checked_texts import checked, same_length
from m6rec_jax.metrics.explanation import unique_sentence_ratio

UNKNOWN = "<unk>"
MAX_WORDS = 15


def frequent_words(texts: Iterable[str], number: int) -> frozenset[str]:
    """The most frequent words of texts; of equally frequent ones those that come first.

    Args:
      texts: PETER counts the explanations of all parts.
      number: of words; PETER takes 20,000.
    """
    counts = collections.Counter(word for text in texts for word in text.split())
    return frozenset(word for word, _ in counts.most_common(number))


def peter_form(text: str, known: Set[str], max_words: int = MAX_WORDS) -> str:
    """The first words of a text between single spaces; one that is not known is `<unk>`."""
    return " ".join(word if word in known else UNKNOWN for word in text.split()[:max_words])


def peter_rouge(
    generated: Sequence[str], references: Sequence[str], order: Literal[1, 2] = 1
) -> float:
    """Mean F of ROUGE-n over *sets* of n-grams, a percentage: one said twice counts once.

    Args:
      generated: the texts, in `peter_form`.
      references: one for each, likewise.
      order: n.

    Raises:
      DataError: no texts, or numbers of texts that differ.
    """
    checked(generated, "ROUGE", "generated texts")
    same_length(generated, checked(references, "ROUGE", "references"), "ROUGE", "references")
    total = 0.0
    for text, reference in zip(generated, references, strict=True):
        got, wanted = _ngrams(text, order), _ngrams(reference, order)
        if both := len(got & wanted):
            total += 2 * both / (len(got) + len(wanted))
    return 100.0 * total / len(generated)


def peter_metrics(
    generated: Sequence[str], references: Sequence[str], known: Set[str]
) -> Mapping[str, float]:
    """`bleu_1`, `bleu_4`, `rouge_1`, `rouge_2` (percentages) and `usr` of texts in `peter_form`.

    Args:
      generated, references: plain texts, one reference for each.
      known: words of PETER's vocabulary, `frequent_words`.

    Raises:
      DataError: no texts, or numbers of texts that differ.
      ConfigError: sacrebleu is not installed.
    """
    ours, theirs = ([peter_form(text, known) for text in of] for of in (generated, references))
    metrics = {f"bleu_{n}": generation.bleu(ours, theirs, n, tokens="none") for n in (1, 4)}
    metrics |= {"rouge_1": peter_rouge(ours, theirs, 1), "rouge_2": peter_rouge(ours, theirs, 2)}
    return metrics | {"usr": unique_sentence_ratio(ours)}


def _ngrams(text: str, order: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + order]) for i in range(len(words) - order + 1)}
