"""The form an answer must have: OpenAI's `response_format`, and vLLM's names for the rest.

Pure values; whether a schema or an expression can be followed is the engine's to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from internvl.engine.constraint import Constraint
from internvl.errors import RequestError
from internvl.serving.protocol import SamplingFields, Strict

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

Schema = str | dict[str, Any]
"""A JSON schema, as an object or as its text."""
Regex = Annotated[str, Field(max_length=100_000)]
"""With a limit pydantic also refuses halves of surrogate pairs, which no compiler of expressions reads."""
Choice = Annotated[str, Field(min_length=1)]
Choices = Annotated[list[Choice], Field(min_length=1, max_length=1024, fail_fast=True)]


class JsonSchema(Strict):
    """`strict` is always so: no answer leaves its schema, whatever this says."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema comes with type json_schema, and not with others")
        return self

    def constraint(self) -> Constraint | None:
        """None for text of any form."""
        if self.type == "text":
            return None
        return json_constraint(ANY_OBJECT if self.json_schema is None else self.json_schema.schema_)


class StructuredOutputs(Strict):
    """vLLM's newer object; its other fields are refused."""

    json_: Schema | None = Field(default=None, alias="json")
    regex: Regex | None = None
    choice: Choices | None = None


class FormFields(SamplingFields):
    """At most one of them; `guided_*` are vLLM's older names."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if len(self._constraints()) > 1:
            raise ValueError("an answer has one form: response_format, structured_outputs or one of guided_*")
        if self.use_beam_search and self.constraint() is not None:
            raise ValueError("use_beam_search cannot be combined with a form of the answer: leave one out")
        return self

    def constraint(self) -> Constraint | None:
        """As the engine has it."""
        return next(iter(self._constraints()), None)

    def _constraints(self) -> list[Constraint]:
        more = self.structured_outputs or StructuredOutputs()
        found = [json_constraint(schema) for schema in (self.guided_json, more.json_) if schema is not None]
        for regex in (self.guided_regex, more.regex):
            if regex is not None:
                found.append(Constraint(kind="regex", value=regex))
        for choices in (self.guided_choice, more.choice):
            if choices is not None:
                found.append(Constraint(kind="choice", value=tuple(choices)))
        by_format = self.response_format.constraint() if self.response_format else None
        return found if by_format is None else [by_format, *found]


def json_constraint(schema: str | Mapping[str, Any]) -> Constraint:
    """Text that is JSON of this schema."""
    return Constraint(kind="json_schema", value=schema if isinstance(schema, str) else as_text(schema))


def as_text(schema: Mapping[str, Any]) -> str:
    """JSON on one line. Raises RequestError for what is too deep."""
    try:
        return json.dumps(schema)
    except RecursionError as reason:
        raise RequestError("the schema is nested too deeply") from reason
