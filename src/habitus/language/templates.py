"""Chat templates: from a list of messages to the text that a model was trained on.

A template is a program that comes with the model, so it runs in jinja2's sandbox, without access to attributes that
lead out of it and without files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from habitus.core.errors import ConfigError, DataError, MissingExtra

Message = Mapping[str, Any]  # {"role": .., "content": ..}


class NoTemplate(ConfigError):
    """The tokenizer has no chat template."""


def render(template: str | None, messages: Sequence[Message], reply: bool, variables: Mapping[str, Any]) -> str:
    """The text of a conversation.

    Args:
        template: as Hugging Face has them; None if there is none.
        reply: whether to open the assistant's next turn.
        variables: what else the template may name: `bos_token`, `tools`, ..

    Raises:
        NoTemplate: without a template.
        DataError: if it cannot be read, refuses the messages, or does what the sandbox forbids.
        MissingExtra: without the package jinja2.
    """
    if not template:
        raise NoTemplate("the tokenizer has no chat template; pass text, or set one with with_template(..).")
    compiled = compile_template(template)
    from jinja2.exceptions import TemplateError

    try:
        return compiled.render(messages=list(messages), add_generation_prompt=reply, **variables)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        what = str(error) or type(error).__name__
        raise DataError(f"the chat template does not take these messages ({what}).") from error


@lru_cache(maxsize=32)
def compile_template(template: str) -> Any:
    """See `render`."""
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtra("chat templates", "language") from error

    def refuse(message: str) -> None:
        raise TemplateError(message)

    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    world.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    world.filters["tojson"] = to_json
    try:
        return world.from_string(template)
    except TemplateError as error:
        raise DataError(f"the chat template cannot be read ({error}).") from error


def to_json(value: Any, **settings: Any) -> str:
    """As templates of Hugging Face expect it: letters beyond ASCII as they are."""
    return json.dumps(value, **({"ensure_ascii": False} | settings))
