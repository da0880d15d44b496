class Model:
    async def predict(self, model_input):
        async def numbers():
            for n in range(3):
                yield str(n)

        return numbers() if model_input else (str(n) for n in range(3))
