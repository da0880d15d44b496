"""The metrics that Prometheus scrapes from a served model."""

from __future__ import annotations

import time

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
        "gusset_masked": "counter",
        "gusset_secrets_source_up": "gauge",
        "process_cpu_seconds": "counter",
        "process_resident_memory_bytes": "gauge",
        "process_virtual_memory_bytes": "gauge",
        "process_start_time_seconds": "gauge",
        "process_open_fds": "gauge",
        "process_max_fds": "gauge",
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
    assert samples["process_cpu_seconds_total",] > 0
    assert 10**7 < samples["process_resident_memory_bytes",] < samples["process_virtual_memory_bytes",]
    assert 0 < samples["process_open_fds",] < samples["process_max_fds",]
    assert 0 <= time.time() - samples["process_start_time_seconds",] < 600


def test_a_model_with_a_metrics_library_of_its_own_reports_the_process_once(serve: ModelProject) -> None:
    """`prometheus_client` has the same figures; a name that appeared twice would end the scrape."""
    served = serve("import prometheus_client\n" + MODEL).ready()
    text = served.get("/metrics").text
    assert text.count("# TYPE process_cpu_seconds_total ") == 1
    assert text.count("# TYPE process_open_fds ") == 1


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
