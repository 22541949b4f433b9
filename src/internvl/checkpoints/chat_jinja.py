"""A prompt format in the Jinja form that transformers' tokenizers and processors fill.

Renders what `processing.templates.render` renders, character for character; a picture is one image token and
a line break, as transformers' own InternVL files have it. Knows no files.
"""

from __future__ import annotations

import json
import re

from internvl.chat_templates import Template
from internvl.config import IMG_CONTEXT

# Names in capitals are replaced by strings; an empty message stays open, as it does here.
_FORM = """\
{%- macro said(content) %}
{%- if content is string %}{{ content }}
{%- else %}{% for part in content %}
{%- if part['type'] == 'image' %}{{ PICTURE }}
{%- elif part['type'] == 'video' %}{{ VIDEO }}
{%- elif part['type'] == 'text' %}{{ part['text'] }}
{%- endif %}{% endfor %}{% endif %}{% endmacro %}
{%- if messages and messages[0]['role'] == 'system' %}
{%- set system = said(messages[0]['content']) %}{% set turns = messages[1:] %}
{%- else %}{% set system = SYSTEM_MESSAGE %}{% set turns = messages %}{% endif %}
{{- SYSTEM_OPENING + system + SYSTEM_END }}
{%- for message in turns %}{% set text = said(message['content']) %}
{%- if message['role'] == 'user' %}
{{- USER_OPENING }}{% if text %}{{ USER_GAP + text + USER_END }}{% endif %}
{%- elif message['role'] == 'assistant' %}
{%- set is_last = loop.last and not add_generation_prompt %}
{{- ASSISTANT_OPENING }}
{%- if text %}{{ ASSISTANT_GAP + text }}{{ LAST_END if is_last else ASSISTANT_END }}{% endif %}
{%- else %}{{ raise_exception('after the first message, roles are user and assistant') }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ASSISTANT_OPENING }}{% endif %}"""


def chat_jinja(template: Template) -> str:
    """The text of chat_template.jinja."""
    user, assistant = template.user, template.assistant
    strings = {
        "PICTURE": f"{IMG_CONTEXT}\n",
        "VIDEO": "<video>\n",
        "SYSTEM_MESSAGE": template.system_message,
        "SYSTEM_OPENING": template.system_opening,
        "SYSTEM_END": template.system_end,
        "USER_OPENING": user.opening,
        "USER_GAP": user.gap,
        "USER_END": user.end,
        "ASSISTANT_OPENING": assistant.opening,
        "ASSISTANT_GAP": assistant.gap,
        "ASSISTANT_END": assistant.end,
        "LAST_END": assistant.end if template.last_end is None else template.last_end,
    }
    # JSON writes strings as Jinja reads them; in one pass, so that no text is taken for a name.
    return re.sub(
        r"\b[A-Z]+(_[A-Z]+)?\b", lambda name: json.dumps(strings[name[0]], ensure_ascii=False), _FORM
    )
