"""What examples/vllm-openai/python uses of vLLM's API. Its engine repeats the prompt, word by word.

As in vLLM, the engine is a process that `multiprocessing` spawns. It gets the
arguments, with the hub's token, through a pipe, and downloads with it.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import urllib.request
from dataclasses import asdict, dataclass


@dataclass
class AsyncEngineArgs:
    model: str
    hf_token: str | None = None
    max_model_len: int | None = None


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16


@dataclass
class CompletionOutput:
    text: str
    finish_reason: str | None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]


class Tokenizer:
    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return " ".join(message["content"] for message in messages)


def engine_process(arguments, pipe):
    """Downloads, as the engine does, and says how it went."""
    url = f"{os.environ['HF_ENDPOINT']}/{arguments.model}/resolve/main/config.json"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {arguments.hf_token}"})
    print("engine with", str(arguments.hf_token), flush=True)  # a careless print: gusset masks it
    with urllib.request.urlopen(request) as response:
        pipe.send(response.status)
    pipe.recv()


class AsyncLLMEngine:
    @classmethod
    def from_engine_args(cls, arguments):
        print("non-default args:", asdict(arguments), flush=True)
        context = multiprocessing.get_context("spawn")
        engine = cls()
        engine._pipe, there = context.Pipe()
        engine._process = context.Process(target=engine_process, args=(arguments, there), daemon=True)
        engine._process.start()
        assert engine._pipe.recv() == 200
        engine._loop, engine._go_on = asyncio.get_running_loop(), asyncio.Event()
        return engine

    async def get_tokenizer(self):
        return Tokenizer()

    async def check_health(self):
        assert self._process.is_alive()

    async def generate(self, prompt, sampling_params, *, request_id):
        """The prompt's words; after the first one of "wait", waits for a request with the prompt "go on"."""
        assert asyncio.get_running_loop() is self._loop, "the engine belongs to one loop"
        if prompt == "go on":
            self._go_on.set()
        most = 2 if prompt == "go on" else sampling_params.max_tokens
        text = ""
        try:
            for number, word in enumerate(itertools.islice(itertools.cycle(prompt.split()), most), 1):
                await asyncio.sleep(0)  # as long as the engine takes
                text += word + " "
                reason = "length" if number == most else None
                yield RequestOutput(request_id, [CompletionOutput(text, reason)])
                if prompt.startswith("wait"):
                    await self._go_on.wait()
        except (asyncio.CancelledError, GeneratorExit):
            print("aborted", request_id, flush=True)
            raise
