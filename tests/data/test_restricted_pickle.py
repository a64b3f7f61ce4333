"""Pickles: containers and scalars come through, everything else is refused by name."""

import collections
import datetime
import pickle

import numpy as np
import pytest

from m6rec_jax.data import review_files
from m6rec_jax.errors import DataError

PLAIN = {
    "a": [1, 2.5, True, None, "é🎬", b"x"],
    "b": ({1, 2}, frozenset({"c"}), {"d": (10**30,)}),
}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_through(tmp_path, protocol):
    path = tmp_path / "x.pickle"
    value = {key: value for key, value in PLAIN.items() if key == "b" or protocol > 2}
    path.write_bytes(pickle.dumps(value, protocol))
    assert review_files.load_pickle(path) == value


def test_text_of_python_2(tmp_path):
    path = tmp_path / "x.pickle"
    # What Python 2 wrote for ['café'] and for set(['a']) in protocol 2.
    path.write_bytes(b"\x80\x02]q\x00U\x05caf\xc3\xa9q\x01a.")
    assert review_files.load_pickle(path) == ["café"]
    path.write_bytes(b"\x80\x02c__builtin__\nset\nq\x00]q\x01U\x01aq\x02a\x85q\x03Rq\x04.")
    assert review_files.load_pickle(path) == {"a"}


class Touch:
    """Runs a function when it is unpickled by an ordinary reader."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_program_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    data = pickle.dumps([{"user": Touch(mark)}])
    pickle.loads(data).clear()
    assert mark.exists()  # the file is the danger that it is meant to be
    mark.unlink()
    path = tmp_path / "x.pickle"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"asks for (_?io|builtins)\.open"):
        review_files.load_pickle(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (eval, r"(builtins|__builtin__)\.eval"),
        (collections.OrderedDict(), r"collections\.OrderedDict"),
        (datetime.date(2020, 1, 1), r"datetime\.date"),
        (np.float64(1), r"numpy"),
        (complex(1, 2), r"(builtins|__builtin__)\.complex"),
        (bytearray(b"x"), r"(builtins|__builtin__)\.bytearray"),
        (DataError("x"), r"m6rec_jax\.errors\.DataError"),
    ],
)
def test_the_refused_name_is_told(tmp_path, value, name, protocol):
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps([value], protocol))
    with pytest.raises(DataError, match=rf"{name}.*JSON lines"):
        review_files.load_pickle(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps(PLAIN)[:-5],
        b"\x80\x02K\x01K\x02b.",  # sets the state of a number
        # Sets an attribute of the class set itself.
        b"\x80\x02cbuiltins\nset\nN}X\x03\x00\x00\x00addK\x01s\x86b.",
        b"\x80\x02h\xff.",  # an object that was never stored
    ],
)
def test_damage_is_told(tmp_path, data):
    path = tmp_path / "x.pickle"
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not a whole pickle"):
        review_files.load_pickle(path)


def test_persistent_objects_and_missing_files(tmp_path):
    path = tmp_path / "x.pickle"
    path.write_bytes(b"Pwhatever\n.")
    with pytest.raises(DataError, match="asks for a persistent object"):
        review_files.load_pickle(path)
    with pytest.raises(DataError, match=r"none\.pickle cannot be read"):
        review_files.load_pickle(tmp_path / "none.pickle")
