"""Rendering: how a conversation becomes text by a model's own chat template, proved each time.

A template is a program of the model's authors: it may drop the system turn, write a text twice, write today's date or
begin the answer with a thought. So after it was applied, the text of each turn must stand in the result, in order and
once; only white space at both ends of a turn may be lost. Where that fails, the system turn is put at the head of the
user's and the result is held to the same proof. Templates that ask for today's date are told the study's.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from perfmis import control
from perfmis.protocols import Messages, Prompt
from perfmis.stage import Prose, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What opens a thought at the very end of a prompt, and what closes it.
THOUGHT = re.compile(
    r"(?:<(?P<element>[\w:]*(?:think|thought|reason)\w*)>|\[(?P<bracket>THINK)\]|<\|START_(?P<marked>THINKING)\|>"
    r"|◁(?P<triangle>think)▷)\s*\Z",
    re.IGNORECASE,
)
CLOSES = {"element": "</{}>", "bracket": "[/{}]", "marked": "<|END_{}|>", "triangle": "◁/{}▷"}


def _merged(messages: Messages) -> Messages:
    """Return a conversation whose system turn opens the user's."""
    system, user, *rest = messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def _stand_in(place: int) -> str:
    return f"turn-{place}-of-the-conversation"


@dataclass(frozen=True)
class Frame:
    """What a template makes of turns, whatever their text.

    Attributes:
        text: What it writes around them.
        silent: Whether it leaves out what stands before an answer.
    """

    text: str
    silent: bool


class Renderer:
    """Puts conversations through a model's chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", date: str, name: str) -> None:
        """Make a renderer.

        Args:
            tokenizer: The model's own, with its chat template.
            date: What templates that ask for today's date are told, YYYY-MM-DD.
            name: What to call the model in errors.
        """
        self._tokenizer, self._name = tokenizer, name
        self._today = datetime.fromisoformat(date)
        self._frames: dict[tuple[str, ...], Frame] = {}

    @functools.cached_property
    def control(self) -> re.Pattern[str]:
        """What finds the control tokens that no turn may hold."""
        return control.pattern(self._tokenizer)

    def text(self, prompt: Prompt) -> str:
        """Return the text that a model continues: a raw prompt itself, messages through the chat template.

        Raises:
            UserError: The template does not take the conversation, also when its system turn opens the user's; or a
                turn holds a control token.
        """
        return prompt if isinstance(prompt, str) else self._proved(prompt)[1]

    def parts(self, prompt: Prompt) -> tuple[str, str]:
        """Return `text` up to a thought that the template opens at its end, and what opens it ("" where none does).

        The model goes on inside of that thought, so a transcript begins with what opens it.
        """
        text = self.text(prompt)
        opened = None if isinstance(prompt, str) else THOUGHT.search(text)
        return (text[: opened.start()], opened[0]) if opened else (text, "")

    def answering(self, prompt: Prompt) -> str:
        """Return `text` up to where an answer's own first word stands.

        Some templates end before the marks that they put in front of an answer, others inside of a thought: the marks
        are added, the thought is closed and stays empty.

        Raises:
            UserError: As `text`.
        """
        if isinstance(prompt, str):
            return prompt
        turns, text = self._proved(prompt)
        if marks := self._marks(turns, text):
            return text + marks
        if opened := THOUGHT.search(text):
            kind = str(opened.lastgroup)
            return f"{text.rstrip()}\n\n{CLOSES[kind].format(opened[kind])}\n\n"
        return text

    def _proved(self, messages: Messages) -> tuple[Messages, str]:
        """Return the turns that the template was given, and the text with all of them."""
        for turn in messages:
            control.refuse(turn["content"], self.control, f"{self._name}: the {turn['role']} turn")
        faults: list[Prose] = []
        systemic = len(messages) > 1 and messages[0]["role"] == "system"
        for turns in (messages, _merged(messages)) if systemic else (messages,):
            try:
                text = self._applied(turns, True)
            except Exception as error:  # a template is a program of others, with faults of its own
                untaken: Prose = f"does not take the conversation ({' '.join(str(error).split())[:160]})"
                faults.append(untaken)
                continue
            fault = self._fault(text, messages, turns)
            if fault is None:
                return turns, text
            faults.append(fault)
        raise UserError(
            f"{self._name}: its chat template {'; with the system turn in the user turn it '.join(faults)}; use an "
            "instruction-tuned model whose template takes it, or mend the template beside its tokenizer"
        )

    def _fault(self, text: str, messages: Messages, turns: Messages) -> Prose | None:
        """Return what a text lacks or has twice of a conversation whose ``turns`` it was made from."""
        frame = self._frame(turns)
        if frame.silent:
            return "begins no answer (it does not heed add_generation_prompt)"
        end = 0
        for turn in messages:
            body = turn["content"].strip()
            start = text.find(body, end)
            if start < 0:
                return f"loses text of the {turn['role']} turn ({len(body)} characters)"
            end = start + len(body)
            if body and text.count(body) > frame.text.count(body) + sum(
                other["content"].count(body) for other in turns
            ):
                return f"writes the {turn['role']} turn more than once"
        return None

    def _frame(self, turns: Messages) -> Frame:
        """Return what the template makes of turns of these roles, whatever their text."""
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._frames:
            blank = [{"role": role, "content": _stand_in(place)} for place, role in enumerate(roles)]
            text = self._attempt(blank, True)
            silent = text == self._attempt(blank, False) and self._marks(blank, text) != ""
            self._frames[roles] = Frame(re.sub("|".join(turn["content"] for turn in blank), "\0", text), silent)
        return self._frames[roles]

    def _marks(self, turns: Messages, text: str) -> str:
        """Return the marks that the template writes between a conversation's ``text`` and an answer, "" for none."""
        answer = _stand_in(len(turns))
        before, found, _ = self._attempt([*turns, {"role": "assistant", "content": answer}], False).partition(answer)
        marks = before.removeprefix(text) if found and before.startswith(text) else ""
        return marks if marks.strip() else ""

    def _attempt(self, messages: Messages, generation: bool) -> str:
        """Return what a template makes of a conversation that it need not take; "" where it does not."""
        try:
            return self._applied(messages, generation)
        except Exception:  # see `_proved`
            return ""

    def _applied(self, messages: Messages, generation: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation,
                strftime_now=self._today.strftime,  # takes the place of the function that asks the clock
            )
        )


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the token that a chat template writes after an answer; None where it has none, or there is no template.

    Where a conversation may end with an answer and no mark, it is the one that begins the user's next turn (GLM 4).
    """
    answer = _stand_in(1)
    turns = [{"role": role, "content": _stand_in(place)} for place, role in enumerate(("user", "assistant", "user"))]
    known = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    for said in (turns[:2], turns):
        try:
            text = str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=False))
        except Exception:  # see `Renderer._proved`
            continue
        after = text.partition(answer)[2].lstrip()
        if written := max((token for token in known if after.startswith(token)), key=len, default=None):
            return known[written]
    return None


def ends(tokenizer: Any, named: int | Sequence[int] | None, end_of_turn: int | None) -> list[int]:
    """Return the tokens that end a sample.

    Args:
        tokenizer: The model's own; its tokens for the end and for padding count.
        named: What the generation configuration names; Llama 3 has three.
        end_of_turn: What the chat template writes after an answer.
    """
    several: Iterable[int | None] = named if isinstance(named, Sequence) else [named]
    return sorted({*several, tokenizer.eos_token_id, tokenizer.pad_token_id, end_of_turn} - {None})
