import json
import time
import uuid

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


class Model:
    """Serves a gated model with vLLM's engine: `/v1/chat/completions`, also streamed, and `predict`."""

    def __init__(self, **kwargs):
        self._metadata = kwargs["config"]["model_metadata"]
        self._secrets = kwargs["secrets"]

    async def load(self):
        # The engine passes its arguments on to the processes that it starts, the token too.
        token = self._secrets["hf_access_token"]
        arguments = AsyncEngineArgs(self._metadata["repo_id"], hf_token=token, **self._metadata["engine"])
        self._engine = AsyncLLMEngine.from_engine_args(arguments)
        self._tokenizer = await self._engine.get_tokenizer()

    async def is_healthy(self):
        await self._engine.check_health()
        return True

    async def predict(self, inputs):
        answer = ""
        async for text, _ in self._generated(inputs["prompt"], inputs):
            answer += text
        return answer

    async def chat_completions(self, inputs):
        messages = inputs.get("messages")
        if not messages:
            raise HTTPException(400, "messages are missing")
        prompt = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        response_id = f"chatcmpl-{uuid.uuid4().hex}"
        about = {"id": response_id, "created": int(time.time()), "model": self._metadata["repo_id"]}
        generated = self._generated(prompt, inputs)
        if inputs.get("stream"):
            # Not a plain generator: OpenAI's client accepts application/json, which would join its chunks.
            return StreamingResponse(self._events(generated, about), media_type="text/event-stream")
        answer, finish_reason = "", None
        async for text, reason in generated:
            answer, finish_reason = answer + text, reason
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        return {**about, "object": "chat.completion", "choices": [choice]}

    async def _events(self, generated, about):
        async for text, reason in generated:
            choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
            yield f"data: {json.dumps({**about, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"

    async def _generated(self, prompt, inputs):
        """Each new piece of text, with the reason why it is the last one, or None.

        A client that disconnects ends this generator, and with it the request in the engine.
        """
        parameters = SamplingParams(
            temperature=inputs.get("temperature", 1.0), max_tokens=inputs.get("max_tokens", 256)
        )
        seen = 0
        async for output in self._engine.generate(prompt, parameters, request_id=uuid.uuid4().hex):
            text = output.outputs[0].text
            yield text[seen:], output.outputs[0].finish_reason
            seen = len(text)
