from starlette.responses import StreamingResponse


class Model:
    def predict(self, model_input):
        return StreamingResponse((f"data: {n}\n\n" for n in range(3)), media_type="text/event-stream")
