"""The metrics that Prometheus scrapes from a served model."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import ModelProject

MODEL = "class Model:\n    def predict(self, model_input):\n        return 1 / model_input\n"


def test_prometheus_reads_names_types_and_labels(serve: ModelProject) -> None:
    """Dashboards and alerts rely on them: they stay as they are."""
    served = serve(MODEL).ready()
    assert [served.predict(number).status_code for number in (1, 2, 0)] == [200, 200, 500]

    families = {family.name: family for family in text_string_to_metric_families(served.get("/metrics").text)}
    assert {name: family.type for name, family in families.items()} == {
        "gusset_requests": "counter",
        "gusset_request_seconds": "histogram",
        "gusset_requests_waiting": "gauge",
        "gusset_model_ready": "gauge",
        "gusset_secret_version": "gauge",
        "gusset_secrets_source_up": "gauge",
    }
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    route = ("route", "predict")
    assert samples["gusset_requests_total", route, ("status", "200")] == 2
    assert samples["gusset_requests_total", route, ("status", "500")] == 1
    assert samples["gusset_request_seconds_bucket", ("le", "+Inf"), route] == 3
    assert samples["gusset_request_seconds_count", route] == 3
    assert samples["gusset_request_seconds_sum", route] > 0
    assert samples["gusset_requests_waiting",] == 0
    assert samples["gusset_model_ready",] == 1
    assert samples["gusset_secrets_source_up",] == 1


def test_a_histogram_counts_each_request_in_all_larger_buckets(serve: ModelProject) -> None:
    served = serve(MODEL).ready()
    for _ in range(3):
        served.predict(1)

    (histogram,) = [
        family
        for family in text_string_to_metric_families(served.get("/metrics").text)
        if family.name == "gusset_request_seconds"
    ]
    counts = [sample.value for sample in histogram.samples if sample.name.endswith("_bucket")]
    assert counts == sorted(counts)
    assert counts[-1] == 3
