class Model:
    def predict(self, *request):
        return list(request)
