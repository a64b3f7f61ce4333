"""The page on own data: its example is a data set, its table names the statistics there are."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from m6rec_jax.data.dataset.schema import COLUMN_TYPES, DatasetSpec, LabelSpec
from m6rec_jax.data.features.features import feature_names
from m6rec_jax.data.features.statistics_settings import StatisticsSettings
from m6rec_jax.data.rendering.template_needs import checked_template
from m6rec_jax.text.templates import CONTEXT_FIELDS, EVENT_FIELDS

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text(encoding="utf-8")


@pytest.fixture
def spec() -> DatasetSpec:
    [example] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    return DatasetSpec.from_dict(json.loads(example))


def test_the_example_is_a_data_set(spec: DatasetSpec) -> None:
    settings = StatisticsSettings.for_dataset(spec)
    template = checked_template(spec, settings, "own_data.md")
    # As the page says, nothing but the title is needed.
    assert template.required(feature_names(settings)) == ({}, {"title": "event"})


def test_all_statistics_stand_in_the_table_and_no_others(spec: DatasetSpec) -> None:
    events = dataclasses.replace(spec.events, value=None)
    purchases = dataclasses.replace(spec, events=events, label=LabelSpec())
    settings = map(StatisticsSettings.for_dataset, (spec, purchases))
    there = {name for one in settings for name in feature_names(one)}
    table = PAGE[PAGE.index("| of | name |") :].partition("\n## ")[0]
    told = re.findall(r"`((?:item|user)_\w+)`", table)
    assert {name.replace("_F_", "_genres_") for name in told} == there
    assert len(told) == len(set(told))


def test_types_and_fields_are_those_that_there_are() -> None:
    for name in COLUMN_TYPES:
        assert f"`{name}`" in PAGE
    for name in (*EVENT_FIELDS, *CONTEXT_FIELDS):
        assert f"{{{name}}}" in PAGE
