"""All text of one data set: profiles, behaviours, context and candidates (paper, section 2).

The format strings themselves are explained in `m6rec_jax.text.format_strings`.
"""

from __future__ import annotations

import datetime
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text import verbalize
from m6rec_jax.text.format_strings import NOTHING, Template, parse_member
from m6rec_jax.text.records import Event, Item, User, Value
from m6rec_jax.text.writing_templates import WRITING, WritingTemplate

S = TypeVar("S", bound=msgspec.Struct)
EVENT_FIELDS = ("outcome", "ago")
CONTEXT_FIELDS = ("date", "weekday", "month", "year", "part_of_day")

# Own names: strftime's would follow the machine's locale.
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)
# Up to (not including) an hour.
_PARTS_OF_DAY = ((5, "night"), (12, "morning"), (17, "afternoon"), (22, "evening"), (24, "night"))


class Outcome(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The words for an event whose value is at least this high; None is "everything lower"."""

    at_least: int | float | None = None
    text: Annotated[str, msgspec.Meta(pattern=r"\S")]


class DatasetTemplate(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename=lambda name: name.removesuffix("_template"),
):
    """All text of one data set: the `template` object of its dataset.json.

        {"profile": "{age} year old {occupation}", "context": "{weekday}",
         "event": "{outcome} {title}, {ago}", "item": "{title}[, {genres}]",
         "candidate": "{title}[, {genres}][. {item_positive_percent} percent liked it]",
         "outcomes": [{"at_least": 4, "text": "liked"}, {"text": "disliked"}]}

    `profile` sees the user's attributes and statistics; `event` the item's attributes, {outcome}
    and {ago}; `candidate` the item's attributes and statistics; `item` the item's attributes alone
    (it is what retrieval and the catalogue encode once for everybody); `context` the statistics and
    the moment's {date}, {weekday}, {month}, {year} and {part_of_day} (UTC). Where a statistic and
    an attribute share a name, the statistic is meant. `writing` holds the texts that are generated
    about items (`writing_templates`). Rendering raises DataError where a required value is missing.
    """

    profile_template: Template = NOTHING
    event_template: Template
    context_template: Template = NOTHING
    candidate_template: Template
    item_template: Template
    # Words for values of events, from the best to the worst.
    outcomes: tuple[Outcome, ...] = ()
    writing: dict[Literal[WRITING], WritingTemplate] = {}  # type: ignore[valid-type]

    @classmethod
    def parse(cls, spec: Any, where: str = "dataset.json") -> DatasetTemplate:
        """Reads the `template` object, in the file `where`.

        Raises:
          ConfigError: a wrong or missing key, or value, or outcomes out of order.
        """
        try:
            read = msgspec.convert(spec, cls, dec_hook=parse_member)
        except msgspec.ValidationError as error:
            keys = [field.encode_name for field in msgspec.structs.fields(cls)]
            member = re.search(r" - at `\$\.(\w+)", str(error))
            more = (
                f"{member[1]!r} is {spec[member[1]]!r}" if member else f"known: {', '.join(keys)}"
            )
            raise ConfigError(f"{where}: 'template': {error}; {more}") from error
        writing = {kind: _named(entry, f"writing.{kind}.") for kind, entry in read.writing.items()}
        return msgspec.structs.replace(_named(read, ""), writing=writing)

    def __post_init__(self) -> None:
        for place, (outcome, after) in enumerate(itertools.pairwise(self.outcomes), start=1):
            if outcome.at_least is None:
                raise ValueError(
                    f"outcome {place} has no 'at_least', so the ones below it never fit"
                )
            if after.at_least is not None and after.at_least >= outcome.at_least:
                raise ValueError(
                    f"outcomes must go from high to low, but {after.at_least} "
                    f"comes after {outcome.at_least}"
                )

    def to_spec(self) -> dict[str, Any]:
        """Returns the object that `parse` reads back; goes into artifacts that serving loads."""
        spec: dict[str, Any] = msgspec.to_builtins(self, enc_hook=lambda member: member.source)
        # Only where there is any: models that write nothing keep the fingerprint they had.
        return spec if self.writing else {k: v for k, v in spec.items() if k != "writing"}

    def validate(
        self,
        user_attributes: Iterable[str],
        item_attributes: Iterable[str],
        statistics: Iterable[str] = (),
        user_statistics: Iterable[str] | None = None,
    ) -> None:
        """Checks every field name of every template.

        Args:
          user_attributes, item_attributes: columns of the tables.
          statistics: names that the statistics given to the methods can have.
          user_statistics: those among them that the profile and the context can use; None: all.

        Raises:
          ConfigError: a template asks for a name that does not exist, the event template asks for
            {outcome} without any outcomes, or an item attribute is called "outcome" or "ago".
        """
        users, items, known = list(user_attributes), list(item_attributes), list(statistics)
        of_user = known if user_statistics is None else list(user_statistics)
        for name in EVENT_FIELDS:
            if name in items and name in self.event_template.fields:
                raise ConfigError(
                    f"the items table has a column '{name}', which the event template would "
                    f"confuse with its own {{{name}}}; rename the column"
                )
        if "outcome" in self.event_template.fields and not self.outcomes:
            raise ConfigError("template 'event' asks for {outcome}, and 'outcomes' is empty")
        self.profile_template.validate([*users, *of_user])
        self.event_template.validate([*items, *EVENT_FIELDS])
        self.context_template.validate([*CONTEXT_FIELDS, *of_user])
        self.candidate_template.validate([*items, *known])
        self.item_template.validate(items)
        for entry in self.writing.values():
            entry.validate(items)

    def required(self, statistics: Iterable[str] = ()) -> tuple[dict[str, str], dict[str, str]]:
        """What every user and every item must have a value of, but for `statistics` (see
        `validate`): of users, of items; attribute -> name of the first template that needs it.
        """
        given = {*statistics, *EVENT_FIELDS}
        writing = [t for entry in self.writing.values() for t in entry.item_templates]
        of_items = [self.event_template, self.candidate_template, self.item_template, *writing]

        def needed(templates: Sequence[Template]) -> dict[str, str]:
            return {n: t.name for t in reversed(templates) for n in t.required if n not in given}

        return needed([self.profile_template]), needed(of_items)

    def outcome(self, value: float | None) -> str:
        """The words for an event's value, "" where no words fit.

        An event without a value has the words that hold for all events, if there are no others:
        every purchase was "bought", but who knows whether an unrated film was liked.
        """
        if value is None or math.isnan(value):
            return self.outcomes[0].text if [o.at_least for o in self.outcomes] == [None] else ""
        fitting = (o.text for o in self.outcomes if o.at_least is None or value >= o.at_least)
        return next(fitting, "")

    @property
    def needs_outcome(self) -> bool:
        """Whether no event can be rendered without words for its value."""
        return "outcome" in self.event_template.required

    def profile(self, user: User, statistics: Mapping[str, Value] | None = None) -> str:
        """Renders the profile segment."""
        values = {**user.attributes, **statistics} if statistics else user.attributes
        return _render(self.profile_template, values, "user", user.id)

    def event(self, event: Event, item: Item, now: float | None) -> str:
        """Renders one past behaviour at the moment `now`, in unix seconds.

        {ago} has no value where `now` is None, or the event's time NaN.
        """
        values: dict[str, Value] = {**item.attributes, "outcome": self.outcome(event.value)}
        if now is not None and not math.isnan(event.time):
            values["ago"] = verbalize.ago(now - event.time)
        return _render(self.event_template, values, "item", item.id)

    def context(self, now: float | None, statistics: Mapping[str, Value] | None = None) -> str:
        """Renders the context segment of the moment `now`, "" for a data set that has none; where
        it is None its fields have no value.

        `statistics` may hold anything else that the template names, such as {"place": "Lisbon"}.
        Raises DataError also where `now` is no date between the years 1 and 9999.
        """
        if not self.context_template.fields:
            return self.context_template.render({})
        values = ({} if now is None else _moment(now)) | dict(statistics or {})
        return _render(self.context_template, values, "moment", now)

    @property
    def has_candidates(self) -> bool:
        """Whether items are scored: a template for retrieval alone has an empty `candidate`."""
        return bool(self.candidate_template.source.strip())

    def candidate(self, item: Item, statistics: Mapping[str, Value] | None = None) -> str:
        """Renders an item to be scored."""
        values = {**item.attributes, **statistics} if statistics else item.attributes
        return _render(self.candidate_template, values, "item", item.id)

    def item(self, item: Item) -> str:
        """Renders an item by itself."""
        return _render(self.item_template, item.attributes, "item", item.id)

    def history_segments(
        self,
        user: User,
        events: Sequence[Event],
        items: Mapping[str, Item],
        now: float | None,
        statistics: Mapping[str, Value] | None = None,
    ) -> list[str]:
        """Renders a user's past as `[profile, behaviour, ..., behaviour, context]`.

        Behaviours that render to nothing are left out. The profile and the context are always
        there, perhaps empty: the length budget knows them by their position.

        Args:
          events: oldest first, none after `now`.
          items: by id, at least those of the events.
          now: the moment of the request, unix seconds; None where it is not known.
          statistics: of the user and the moment, for the profile and the context.
        """
        behaviours = [self.event(event, items[event.item_id], now) for event in events]
        profile, context = self.profile(user, statistics), self.context(now, statistics)
        return [profile, *filter(None, behaviours), context]


def _render(template: Template, values: Mapping[str, Value], kind: str, key: object) -> str:
    try:
        return template.render(values)
    except DataError as error:
        raise DataError(f"{kind} '{key}': {error}") from None


def _moment(now: float) -> dict[str, Value]:
    try:
        moment = datetime.datetime.fromtimestamp(now, tz=datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise DataError(f"{now} is not a time in unix seconds") from None
    month = _MONTHS[moment.month - 1]
    return {
        "date": f"{moment.day} {month} {moment.year}",
        "weekday": _WEEKDAYS[moment.weekday()],
        "month": month,
        "year": moment.year,
        "part_of_day": next(name for hour, name in _PARTS_OF_DAY if moment.hour < hour),
    }


def _named(struct: S, prefix: str) -> S:
    """With the names of its templates, for error messages."""
    templates = {name: getattr(struct, name) for name in struct.__struct_fields__}
    named = {
        name: template.named(prefix + name.removesuffix("_template"))
        for name, template in templates.items()
        if isinstance(template, Template)
    }
    return msgspec.structs.replace(struct, **named)
