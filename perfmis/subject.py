"""A model that is asked: its samples come from the store, and what the store lacks is drawn by an engine.

Where nothing is missing, no engine starts and no weights are read.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfmis import checkpoints, control, models, protocols, rendering, stage
from perfmis.adapters import identity
from perfmis.artifacts import read_json
from perfmis.checkpoints import adapter_name
from perfmis.engines.interface import Engine, Prompt, Sample, Sampling, Steering
from perfmis.rendering import Renderer
from perfmis.samples import Store, addresses
from perfmis.stage import UserError
from perfmis.vocabulary import BASE

SERVING = ("engine", "precision", "quantization")  # behind a server the first alone
ROOM = 4096  # tokens; the least that an engine is started with
Guard = Callable[[Engine], AbstractContextManager[None]]
Ask = Callable[[list[protocols.Messages], list[int], Sampling], list[Sample | None]]


class DistrustError(UserError):
    """An engine was found out while it sampled: what it drew must not be kept."""


@dataclass(frozen=True)
class Machine:
    """How an engine is run.

    Attributes:
        tensor: GPUs that share each layer.
        pipeline: Groups of layers, each on GPUs of its own.
        scratch: Folder for what an engine behind a server must remember.
    """

    tensor: int
    pipeline: int
    scratch: Path


class Progress:
    """Says on standard error how far the sampling is, at most once in ten seconds."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total
        self.start = self.said = time.monotonic()

    def __call__(self, samples: int) -> None:
        """Count samples."""
        self.done += samples
        now = time.monotonic()
        if now - self.said > 10:
            left = (now - self.start) / self.done * (self.total - self.done)
            print(f"{self.done}/{self.total} samples, {left:.0f} s left", file=sys.stderr)
            self.said = now


def unguarded(_engine: Engine) -> AbstractContextManager[None]:
    """Let an engine sample as it will."""
    return nullcontext()


@dataclass
class Subject:
    """A model with its checkpoints, whose samples are read from the store or else drawn.

    Attributes:
        base: ``reference.json`` of the model.
        folders: Adapter folder of each checkpoint.
        settings: What decides the numbers beside weights and sampling: the keys of `SERVING`.
        store: Where samples are kept.
        machine: How the engine is run; it decides nothing.
        date: What chat templates that ask for today's date are told, YYYY-MM-DD; not used behind an API.
    """

    base: Path
    folders: dict[str, Path]
    settings: dict[str, Any]
    store: Store
    machine: Machine
    date: str = ""
    _running: tuple[Engine, int, bool] | None = field(default=None, init=False)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None behind an API."""
        return None if self.settings["engine"] == "api" else models.tokenizer(self.base)

    @functools.cached_property
    def weights(self) -> dict[str | None, str]:
        """What identifies the weights behind each adapter name, and behind None, the base model."""
        base = read_json(self.base)["weights_sha256"]
        if self.settings["engine"] != "api":
            base += models.behaviour_hash(self.base)
        adapted = {adapter_name(c): identity(folder) for c, folder in self.folders.items()}
        return {None: base, **{name: f"{base}+{sha256}" for name, sha256 in adapted.items()}}

    @functools.cached_property
    def renderer(self) -> Renderer | None:
        """What puts conversations through the model's chat template; None behind an API."""
        if self.tokenizer is None:
            return None
        return Renderer(self.tokenizer, self.date, read_json(self.base)["model"])

    def prompt(
        self, messages: protocols.Prompt, seed: int, checkpoint: str = BASE, steering: Steering | None = None
    ) -> tuple[Prompt, str]:
        """Return a rendered prompt as the engine takes it, and the hash of its text."""
        if self.renderer is None:
            turns = protocols.conversation(messages)
            return Prompt((), None, seed, None, tuple(turns)), protocols.sha256(turns)
        context, opened = self.renderer.parts(messages)
        text = context + opened
        prompt = Prompt(self._encoded(text), adapter_name(checkpoint), seed, steering, opened=opened)
        return prompt, protocols.sha256(text)

    def question(self, messages: protocols.Messages, seed: int) -> Prompt:
        """Return a prompt whose answer follows a schema: after a thought, and with nothing quoted that adds turns."""
        if self.renderer is None:
            return self.prompt(messages, seed)[0]
        tokens = self.renderer.control
        turns = [{**turn, "content": control.spaced(turn["content"], tokens)} for turn in messages]
        return Prompt(self._encoded(self.renderer.answering(turns)), None, seed)

    def refuse_control(self, text: str, what: str) -> None:
        """Refuse a request or a snippet with a control token of the model's; behind an API they are plain text.

        Raises:
            UserError: It holds one; ``what`` says which text it is.
        """
        if self.renderer is not None:
            control.refuse(text, self.renderer.control, what)

    @functools.cached_property
    def _encoded(self) -> Callable[[str], tuple[int, ...]]:
        # Checkpoints, seeds and vectors are asked the same texts.
        return functools.cache(lambda text: tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def addresses(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[str]:
        """Return where the sample of each prompt is kept."""
        return addresses(prompts, self.weights, self.settings | self._end, sampling)

    def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, guard: Guard = unguarded
    ) -> tuple[list[str], list[Sample | None]]:
        """Return the address and the sample of each prompt, drawing those that the store lacks.

        A sample that could not be had, which only happens behind an API, is None.
        """
        names = self.addresses(prompts, sampling)
        found = self.store.read(names)
        missing = {name: prompt for name, prompt in zip(names, prompts, strict=True) if name not in found}
        print(f"{len(set(names)) - len(missing)} samples are stored, {len(missing)} are missing", file=sys.stderr)
        if missing:
            self._draw(list(missing), list(missing.values()), sampling, guard)
            # From disk, since another job may have drawn some of them meanwhile and only one draw counts.
            found |= self.store.read(missing)
        return names, [found.get(name) for name in names]

    @functools.cached_property
    def _end(self) -> dict[str, int | None]:
        """The chat template's end of turn, where nothing else says that it ends a sample.

        It is in a sample's address there, and only there: what was drawn where it ended samples all along stays.
        """
        if self.tokenizer is None:
            return {}
        end = rendering.end_of_turn(self.tokenizer)
        known = {*models.ends(self.base), self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, None}
        return {} if end in known else {"end": end}

    def _draw(self, names: list[str], prompts: list[Prompt], sampling: Sampling, guard: Guard) -> None:
        engine = self._engine(self.length(prompts, sampling), any(prompt.steering for prompt in prompts))
        progress = Progress(len(prompts))
        with self.store.writer() as writer:
            try:
                with guard(engine):
                    for batch in engine.sample(prompts, sampling):
                        writer.append((names[index], sample) for index, sample in batch)
                        progress(len(batch))
            except DistrustError:
                writer.discard()
                raise

    def _engine(self, length: int, steered: bool) -> Engine:
        """Return the engine, which stays open for further questions that it has room for."""
        if self._running and self._running[1] >= length and self._running[2] >= steered:
            return self._running[0]
        if self._running:
            self._running[0].close()
        start = time.monotonic()
        engine = self._start(length, steered)
        print(f"{self.settings['engine']} started in {time.monotonic() - start:.1f} s", file=sys.stderr)
        self._running = engine, length, steered
        return engine

    @functools.cached_property
    def _context(self) -> int:
        return models.context(self.base)

    def fits(self, prompt: Prompt, sampling: Sampling) -> bool:
        """Return whether a prompt leaves room for its answer."""
        return self.tokenizer is None or len(prompt.tokens) + sampling.max_tokens <= self._context

    def length(self, prompts: Sequence[Prompt], sampling: Sampling) -> int:
        """Return the tokens that an engine should have room for: the longest prompt with its answer, or more.

        Raises:
            UserError: They are more than the model's context; found before any weights are read.
        """
        if self.tokenizer is None:
            return 0
        longest = max(prompts, key=lambda prompt: len(prompt.tokens))
        if not self.fits(longest, sampling):
            raise UserError(
                f"max_tokens: {sampling.max_tokens} after a prompt of {len(longest.tokens)} tokens is more than the "
                f"context of {read_json(self.base)['model']} ({self._context} tokens); lower it or choose a shorter "
                "protocol"
            )
        # Rounded up, since further questions to the same engine may be longer.
        return min(self._context, max(ROOM, 1 << (len(longest.tokens) + sampling.max_tokens - 1).bit_length()))

    def _start(self, length: int, steered: bool) -> Engine:
        kind = self.settings["engine"]
        if kind == "transformers":
            return checkpoints.engine(self.base, self.folders, self.settings["precision"])
        if kind == "vllm":
            from perfmis.engines.vllm import VllmEngine

            return VllmEngine(
                models.folder(self.base),
                checkpoints.named(self.folders, self.base),
                precision=self.settings["precision"],
                quantization=self.settings["quantization"],
                tensor=self.machine.tensor,
                pipeline=self.machine.pipeline,
                length=length,
                steered=steered,
            )
        from perfmis.engines.api.engine import ApiEngine
        from perfmis.engines.api.server import Server

        return ApiEngine(Server(**read_json(self.base)["server"]), self.machine.scratch)


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser with the options of every stage that asks a model."""
    result = stage.parser(description)
    result.add_argument("--base", type=Path, required=True, help="reference.json of the model")
    result.add_argument("--adapters", nargs="*", default=[], help="CHECKPOINT=FOLDER of each adapter")
    result.add_argument("--samples", type=Path, required=True, help="folder of the store of samples")
    result.add_argument("--tensor", type=int, default=1, help="GPUs that share each layer")
    result.add_argument("--pipeline", type=int, default=1, help="groups of layers, each on GPUs of its own")
    return result


def subject(arguments: argparse.Namespace, settings: dict[str, Any]) -> Subject:
    """Return the subject that a stage's arguments and settings describe."""
    serving = {key: settings[key] for key in SERVING if key in settings}
    machine = Machine(arguments.tensor, arguments.pipeline, arguments.samples / "api")
    folders = checkpoints.adapters(arguments.adapters)
    # A server renders by itself.
    date = "" if serving["engine"] == "api" else settings["date"]
    return Subject(arguments.base, folders, serving, Store(arguments.samples), machine, date)


def messages_ask(arguments: argparse.Namespace, settings: dict[str, Any]) -> Ask:
    """Return a function that puts conversations with seeds to a model without adapters, such as a judge.

    A conversation that is too long for the model is answered by None, as one that failed.
    """
    asked = subject(arguments, settings)

    def put(conversations: list[protocols.Messages], seeds: list[int], sampling: Sampling) -> list[Sample | None]:
        prompts = [asked.question(messages, seed) for messages, seed in zip(conversations, seeds, strict=True)]
        fits = [index for index, prompt in enumerate(prompts) if asked.fits(prompt, sampling)]
        samples = asked.sample([prompts[index] for index in fits], sampling)[1]
        found = dict(zip(fits, samples, strict=True))
        return [found.get(index) for index in range(len(prompts))]

    return put
