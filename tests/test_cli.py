"""The command line: what it refuses before anything is run."""

from __future__ import annotations

import pytest

from m6rec_jax import cli, subcommands

WITHOUT_GIN = {
    "data fetch": ["movielens-100k"],
    "data check": ["folder"],
    "convert": ["--from", "huggingface:a", "--to", "b"],
    "prompts list": ["bank"],
    "prompts add": ["bank", "--from", "run"],
    "prompts remove": ["bank", "task"],
    "prompts inspect": ["bank", "task"],
    "demo": [],
    "doctor": [],
}


@pytest.mark.parametrize("command", WITHOUT_GIN)
def test_settings_that_a_command_would_ignore_are_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: list[str] = []
    monkeypatch.setattr(
        subcommands, f"run_{command.replace(' ', '_')}", lambda args: run.append(command)
    )
    words = [*command.split(), *WITHOUT_GIN[command]]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--gin.BATCH_SIZE=8"])
    assert ended.value.code == cli.EXIT_USER_ERROR
    assert f"m6rec {command} takes no gin settings: --gin.BATCH_SIZE=8" in capsys.readouterr().err
    assert not run
    assert cli.main(words) == 0
    assert run == [command]


def test_settings_reach_a_command_that_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[str]] = []
    monkeypatch.setattr(subcommands, "run_params", lambda args: found.append(args.gin_bindings))
    assert cli.main(["params", "--gin_file", "a.gin", "--gin.BATCH_SIZE=8"]) == 0
    assert found == [["BATCH_SIZE = 8"]]
