"""Renders a template for many records at once: each distinct text once, by `Template.render`.

Values come in *sources*, dictionary-encoded: record `n` has the values `source.values[code]` of
`code = source.codes[n]`. A template is cut into pieces, each as long as it needs the same sources.
A piece is rendered once for each combination of their codes that occurs, and texts are put together
from the pieces. What a record reads is thus made by the code that renders one record by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.errors import DataError
from m6rec_jax.text.format_strings import Template
from m6rec_jax.text.records import Value


@dataclass(frozen=True)
class Source:
    """Values of some fields for `n` records.

    Attributes:
      codes: int `[n]`.
      values: for each code, values by field; or those of the one field `name`.
      name: see there.
    """

    codes: np.ndarray
    values: Sequence[Mapping[str, Value]] | Sequence[Value]
    name: str | None = None

    def at(self, record: int) -> Mapping[str, Value]:
        """The values of a record."""
        value = self.values[self.codes[record]]
        if self.name is not None:
            return {self.name: value}
        assert isinstance(value, Mapping)
        return value


def classes(*codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers combinations of codes `[n]`, none negative.

    Returns:
      a record of each combination `[combinations]`, and the combination of each record `[n]`.
    """
    combined, first = codes[0].astype(np.int64), np.zeros(0, np.int64)
    for number, column in enumerate(codes):
        if number:
            combined = combined * (int(column.max(initial=0)) + 1) + column
        # Anew for each, so that products do not overflow.
        _, first, combined = np.unique(combined, return_index=True, return_inverse=True)
    return first, combined


def distinct_texts(
    codes: Sequence[np.ndarray], text_of: Callable[[int], str]
) -> pa.DictionaryArray:
    """Texts of records whose codes `[n]` say all that a text depends on.

    Args:
      codes: int `[n]` each, none negative.
      text_of: the text of a record.
    """
    first, combined = classes(*codes)
    texts = pa.array([text_of(record) for record in first.tolist()], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(combined, pa.int32()), texts)


def render_all(
    template: Template,
    size: int,
    sources: Mapping[str, Source],
    name_of: Callable[[int], str],
) -> pa.Array:
    """The texts of `size` records, as a string or dictionary array.

    Args:
      template: whose fields are all among the sources.
      size: how many records there are.
      sources: by field; several may have the same.
      name_of: what error messages call a record.

    Raises:
      DataError: as `Template.render`, beginning with the record's name.
    """
    columns = []
    for piece in template.pieces(lambda field: id(sources[field])):
        needed = list({id(sources[field]): sources[field] for field in piece.fields}.values())

        def text_of(record: int, piece: Template = piece, needed: list[Source] = needed) -> str:
            values: dict[str, Value] = {}
            for source in needed:
                values.update(
                    {k: v for k, v in source.at(record).items() if sources.get(k) is source}
                )
            try:
                return piece.render(values)
            except DataError as error:
                raise DataError(f"{name_of(record)}: {error}") from None

        codes = [source.codes for source in needed] or [np.zeros(size, np.int8)]
        columns.append(distinct_texts(codes, text_of))
    if not columns:
        return pa.array([""] * size, pa.string())
    if len(columns) == 1:
        return columns[0]
    return pc.binary_join_element_wise(*(column.dictionary_decode() for column in columns), "")
