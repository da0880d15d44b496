"""The messages between supervisor and worker."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from gusset.runtime.browser_rules import BrowserRules
from gusset.runtime.tls import TlsFiles
from gusset.secrets.hits import Hit
from gusset.serving.channel import Malformed
from gusset.serving.deployment import ModelDeployment
from gusset.serving.protocol import (
    Accept,
    Downloaded,
    Drain,
    Drained,
    Failed,
    Holds,
    Loading,
    Masked,
    Order,
    Ready,
    SetLagging,
    SetMaskedHits,
    SetSecrets,
    SetSourceError,
    StartStep,
    Used,
    WorkerPlan,
    WorkerReport,
    decode_order,
    decode_report,
    encode_order,
    encode_report,
)

SECRETS = SetSecrets(values={"token": b"s3cr3t-v4lue"}, versions={"token": 3})
PLAN = WorkerPlan(
    deployment=ModelDeployment(
        name="tiny", folder=Path("/tiny"), model_file=Path("/tiny/model.py"), config={"a": {1: None}}
    ),
    secrets=SECRETS,
    readable_logs=False,
    shares_port=True,
    masks_responses=False,
    browser_rules=BrowserRules.make("127.0.0.1", hosts=(), origins=("https://a.example",)),
    tls=TlsFiles(certificate=Path("/chain.pem"), key=Path("/key.pem")),
)
HITS = {Hit("token", "base64", "response"): 2, Hit("token", "plain", "log"): 1}
ORDERS: list[Order] = [
    PLAN,
    SECRETS,
    SetSourceError("away"),
    SetSourceError(None),
    SetLagging("a worker uses version 2 of token"),
    SetLagging(None),
    SetMaskedHits(HITS),
    Downloaded(everything=False),
    Accept(),
    Drain(),
]
REPORTS: list[WorkerReport] = [
    Loading(),
    Ready(),
    Drained(),
    *(Failed(step, "é") for step in StartStep),
    Masked(HITS),
    Holds(7),
    Used(7, ["token", "other"]),
]


def test_every_message_is_among_those_that_are_sent_below() -> None:
    assert {type(order) for order in ORDERS} == set(get_args(Order))
    assert {type(report) for report in REPORTS} == set(get_args(WorkerReport))


@pytest.mark.parametrize("order", ORDERS)
def test_orders_arrive_as_they_were_sent(order: Order) -> None:
    assert decode_order(encode_order(order)) == order


@pytest.mark.parametrize("report", REPORTS)
def test_reports_arrive_as_they_were_sent(report: WorkerReport) -> None:
    assert decode_report(encode_report(report)) == report


@pytest.mark.parametrize("message", [PLAN, SECRETS, Failed(StartStep.LOAD, "s3cr3t-v4lue")])
def test_no_repr_of_a_message_shows_a_value(message: Order | WorkerReport) -> None:
    """A traceback may contain a value, too."""
    assert "s3cr3t-v4lue" not in repr(message)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"s3cr3t-v4lue",
        b"null",
        b"[]",
        b'"ready"',
        b'{"event":"s3cr3t-v4lue"}',
        b'{"event":["ready"]}',
        b'{"event":"failed","step":"load"}',
        b'{"event":"failed","step":"s3cr3t-v4lue","trace":""}',
        b'{"event":"failed","step":"load","trace":{"s3cr3t-v4lue":1}}',
        b'{"event":"masked","hits":{"s3cr3t-v4lue":1}}',
        b'{"event":"masked","hits":["s3cr3t-v4lue"]}',
        b'{"event":"masked","hits":[["token","s3cr3t-v4lue","log",1]]}',
        b'{"event":"masked","hits":[["token","plain","s3cr3t-v4lue",1]]}',
        b'{"event":"masked","hits":[["token","plain","log","s3cr3t-v4lue"]]}',
        b'{"event":"masked","hits":[["token","plain","log",0]]}',
        b'{"event":"masked","hits":[["token","plain","log",1099511627776]]}',
        b'{"event":"holds"}',
        b'{"event":"holds","number":"s3cr3t-v4lue"}',
        b'{"event":"used","number":1}',
        b'{"event":"used","number":1,"names":"s3cr3t-v4lue"}',
        b'{"event":"used","number":1,"names":["token",["s3cr3t-v4lue"]]}',
        encode_order(Drain()),
    ],
)
def test_anything_but_a_report_is_refused_without_quoting_it(message: bytes) -> None:
    """The worker runs the model's code, which can write to the supervisor, and knows values."""
    with pytest.raises(Malformed) as error:
        decode_report(message)
    assert "s3cr3t" not in str(error.value)
    assert error.value.__cause__ is None
