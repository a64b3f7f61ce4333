"""What an export must not do to be written."""

import json
from pathlib import Path

import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.export.folder import EQUAL_TEXTS, TOLERANCES, verify

GOOD = {"largest_difference": 0.01, "equal": 1.0, "auc": 0.797, "model_auc": 0.8}


def checked(folder: Path, precision: str, **result: float) -> dict[str, dict[str, float]]:
    """Of an export whose own check says so."""
    found = {"results": {"score": GOOD | result}, "imported": []}
    # Packages may be the user's own; what lies here, or on PYTHONPATH, is not used.
    flags = "not sys.flags.no_user_site and sys.flags.safe_path and sys.flags.ignore_environment"
    script = f"import sys\nassert {flags}\nprint({json.dumps(found)!r})"
    (folder / "check.py").write_text(script)
    manifest = {"tolerance": TOLERANCES[precision], "equal_texts": EQUAL_TEXTS[precision]}
    (folder / "export.json").write_text(json.dumps(manifest))
    return verify(folder, "check.py")


def test_bytes_may_lose_half_a_percent_of_the_auc_and_no_more(tmp_path: Path) -> None:
    assert checked(tmp_path, "int8") == {"score": GOOD}
    assert (
        json.loads((tmp_path / "export.json").read_text())["verified"]["results"]["score"] == GOOD
    )
    with pytest.raises(
        DataError, match=r"an AUC of 0\.7950, the model with 0\.8000: more than 0\.5%"
    ):
        checked(tmp_path, "int8", auc=0.795)
    with pytest.raises(DataError, match=r"differs from the model by 0\.06 .* 0\.05 is allowed"):
        checked(tmp_path, "int8", largest_difference=0.06)
    with pytest.raises(DataError, match=r"90\.00% of what 'score' .* must be 95%"):
        checked(tmp_path, "float16", equal=0.9)
    with pytest.raises(DataError, match=r"differs from the model by 0\.01 .* 0\.0001 is allowed"):
        checked(tmp_path, "float32")
