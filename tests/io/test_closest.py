"""The nearest name to a misspelt one."""

from m6rec_jax.io.closest import did_you_mean


def test_case_does_not_matter_and_nothing_near_gives_nothing() -> None:
    assert did_you_mean("Title", ["title", "year"]) == " (did you mean 'title'?)"
    assert did_you_mean("USERID", ["UserId"]) == " (did you mean 'UserId'?)"
    assert did_you_mean("zzz", ["title"]) == ""
