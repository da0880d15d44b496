-- One request again and again; at the end one line of JSON. Environment: METHOD, BODY, KEY.
wrk.method = os.getenv("METHOD")
local body = os.getenv("BODY")
if body ~= "" then wrk.body = body end
if os.getenv("KEY") ~= "" then wrk.headers["Authorization"] = "Bearer " .. os.getenv("KEY") end
wrk.headers["Content-Type"] = "application/json"

function done(summary, latency, requests)
  io.write(string.format(
    '{"requests": %d, "rate": %.1f, "p50": %d, "p95": %d, "p99": %d, "errors": %d}\n',
    summary.requests, summary.requests / summary.duration * 1e6,
    latency:percentile(50), latency:percentile(95), latency:percentile(99),
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
