class Model:
    async def predict(self, model_input):
        errors = {"exit": SystemExit, "interrupt": KeyboardInterrupt, "stop": StopIteration}
        if model_input in errors:
            raise errors[model_input]
        return "up"
