"""The released prompt formats, as rows.

Data only, for whoever renders a conversation (`processing.templates`) and whoever writes the same form down
for other programs (`checkpoints.side_files`). Knows no messages, no tokenizer and no pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One role: `opening`, and where there is text, `gap`, the text and `end`.

    `ending` is how much of `end` the assistant is trained to write: without a line break after the mark.
    """

    opening: str
    gap: str = ""
    end: str

    @property
    def ending(self) -> str:
        return self.end.rstrip() or self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A released prompt format.

    `stop` is the token that ends an answer (None: the tokenizer's own end), and nothing else does, as in the
    released chat. `last_end` replaces the end of a finished assistant turn that is the last one.
    `strips_training_text`: training data is stripped before it is rendered, as the model's own was.
    """

    name: str
    system_opening: str = ""
    system_message: str = ""
    system_end: str = ""
    user: Turn
    assistant: Turn
    last_end: str | None = None
    stop: str | None
    strips_training_text: bool = False

    def with_system(self, message: str | None) -> Template:
        """The same with a model's own system message; None leaves the template's."""
        return self if message is None else replace(self, system_message=message)


_INTERNVL = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)
_INTERNVL_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、"
    "清华大学及多家合作单位联合开发的多模态大语言模型。"
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_INTERNLM = (
    "A chat between a curious <|User|> and an <|Bot|>. "
    "The <|Bot|> gives helpful, detailed, and polite answers to the <|User|>'s questions.\n\n"
)
_GPT_OSS = (
    "You are InternVL, a large language model trained by Shanghai AI Laboratory.\nKnowledge cutoff: 2024-06\n"
    "Current date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message."
)


def _chatml(name: str, system: str, end: str = "<|im_end|>") -> Template:
    return Template(
        name=name,
        system_opening="<|im_start|>system\n",
        system_message=system,
        system_end=end,
        user=Turn(opening="<|im_start|>user\n", end=end),
        assistant=Turn(opening="<|im_start|>assistant\n", end=end),
        stop="<|im_end|>",
    )


_HERMES = _chatml("Hermes-2", _INTERNVL)
_INTERNLM2 = replace(_chatml("internlm2-chat", _INTERNVL), strips_training_text=True)
_ZH = Template(
    name="internvl_zh",
    system_end=" ",
    user=Turn(opening="<human>:", gap=" ", end=" "),
    assistant=Turn(opening="<bot>:", gap=" ", end="</s>"),
    stop="</s>",
)
_PHI3 = Template(
    name="phi3-chat",
    system_opening="<|system|>\n",
    system_message=_INTERNVL,
    system_end="<|end|>",
    user=Turn(opening="<|user|>\n", end="<|end|>"),
    assistant=Turn(opening="<|assistant|>\n", end="<|end|>"),
    stop="<|end|>",
)
_VICUNA_1_1 = Template(
    name="vicuna_v1.1",
    system_message=_VICUNA,
    system_end=" ",
    user=Turn(opening="USER:", gap=" ", end=" "),
    assistant=Turn(opening="ASSISTANT:", gap=" ", end="</s>"),
    stop="</s>",
)

_ROWS = (
    # As registered today.
    _ZH,
    _HERMES,
    _INTERNLM2,
    _PHI3,
    _chatml("internvl2_5", _INTERNVL_2_5, "<|im_end|>\n"),
    Template(
        name="internvl3_5_gpt_oss",
        system_opening="<|start|>system<|message|>",
        system_message=_GPT_OSS,
        system_end="<|end|>",
        user=Turn(opening="<|start|>user<|message|>", end="<|end|>"),
        assistant=Turn(opening="<|start|>assistant", end="<|end|>"),
        last_end="<|return|>",
        stop="<|return|>",
    ),
    # As released in May 2024: the numbers of V1.5 were made with these.
    replace(_ZH, name="internvl_zh@2024-05"),
    replace(_HERMES, name="Hermes-2@2024-05", system_message="Answer the questions."),
    replace(
        _INTERNLM2,
        name="internlm2-chat@2024-05",
        system_message="You are an AI assistant whose name is InternLM (书生·浦语).",
    ),
    replace(
        _PHI3,
        name="phi3-chat@2024-05",
        system_message="You are an AI assistant whose name is Phi-3.",
        system_end="<|end|>\n",
        user=Turn(opening="<|user|>\n", end="<|end|>\n"),
        assistant=Turn(opening="<|assistant|>\n", end="<|end|>\n"),
    ),
    Template(
        name="internlm-chat",
        system_message=_INTERNLM,
        user=Turn(opening="<|User|>:", end="<eoh>\n"),
        assistant=Turn(opening="<|Bot|>:", end="<eoa>\n"),
        stop="<eoa>",
    ),
    # LLaVA's names for the Vicuna models.
    _VICUNA_1_1,
    replace(_VICUNA_1_1, name="v1"),
    replace(_VICUNA_1_1, name="vicuna_v1"),
    replace(_VICUNA_1_1, name="llava_v1", system_message=_LLAVA),
    Template(name="plain", user=Turn(opening="", end=""), assistant=Turn(opening="", end="\n"), stop=None),
)

TEMPLATES: Mapping[str, Template] = {template.name: template for template in _ROWS}
