"""Bags of pieces: each candidate has its own pieces and its row's."""

import numpy as np
import pytest

from benchmarks import piece_bags


def test_candidates_have_their_own_pieces_and_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two rows: one with two candidates (the second repeats a piece), one with one, then filling.
    batch = {
        "encoder_input_tokens": np.array([[5, 6, 5, 0], [7, 0, 0, 0], [0, 0, 0, 0]]),
        "decoder_input_tokens": np.array(
            [[1, 3, 2, 1, 4, 4, 2, 0], [1, 3, 2, 0, 0, 0, 0, 0], [0] * 8]
        ),
        "decoder_block_ids": np.array(
            [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0], [0] * 8]
        ),
        "decoder_labels": np.array(
            [[-1, -1, 4, -1, -1, -1, 0, -1], [-1, -1, 2, -1, -1, -1, -1, -1], [-1] * 8]
        ),
        "user_ids": np.array([[8], [9], [0]]),
    }

    def batches(*given: object, split: str) -> list[dict[str, np.ndarray]]:
        assert split == "train"
        return [batch, batch]

    monkeypatch.setattr(piece_bags, "EvaluationBatches", batches)
    bags = piece_bags.piece_bags("task", {"inputs": 4, "targets": 8}, "train", vocab_size=10)
    assert bags.classes.tolist() == [4, 0, 2] * 2
    assert bags.users.tolist() == [8, 8, 9] * 2
    held = [set(np.flatnonzero(row).tolist()) for row in bags.pieces.toarray()]
    expected = [{5, 6, 11, 12, 13}, {5, 6, 11, 12, 14}, {7, 11, 12, 13}]
    assert held == expected * 2
    assert bags.pieces.max() == 1
