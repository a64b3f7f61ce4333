"""Gin bindings of a study's command, and how an error ends it."""

import argparse

import pytest

from benchmarks.command_line import errors_told, with_bindings


def test_what_is_no_binding_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[tuple[int, list[str]]] = []

    @errors_told
    def main(arguments: list[str]) -> int:
        parser = argparse.ArgumentParser()
        parser.add_argument("--seed", type=int, default=0)
        options, bindings = with_bindings(parser, arguments)
        found.append((options.seed, bindings))
        return 0

    assert main(["--gin.A=1", "--seed", "3", "--gin.B='x'"]) == 0
    assert main(["--gin.A=1", "--seeds=3,4"]) == 2
    assert found == [(3, ["--gin.A=1", "--gin.B='x'"])]
    assert capsys.readouterr().err == "error: unrecognized argument: --seeds=3,4\n"
