from starlette.responses import Response


class Model:
    def predict(self, model_input):
        response = Response("<b>hi</b>", status_code=201, media_type="text/html", headers={"x-mine": "1"})
        response.set_cookie("seen", "yes")
        return response
