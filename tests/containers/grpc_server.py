"""A gRPC server for the tests' images: `python3 grpc_server.py PORT [HEALTH]`.

HEALTH is what its health service responds with: a number, or `none` for no such service.
"""

import concurrent.futures
import os
import signal
import sys
import time

import grpc

port, health = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "1"


def secret(request, context):
    """The value of the secret that the request names."""
    with open(f"/secrets/{request.decode()}", "rb") as file:
        return file.read()


def echo_all(requests, context):
    """Each request as a response, as it comes."""
    yield from requests


def wait(request, context):
    time.sleep(float(request))
    return b"done"


def metadata(request, context):
    return repr(sorted(context.invocation_metadata())).encode()


class Handlers(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/test/secret": grpc.unary_unary_rpc_method_handler(secret),
            "/test/echo_all": grpc.stream_stream_rpc_method_handler(echo_all),
            "/test/wait": grpc.unary_unary_rpc_method_handler(wait),
            "/test/metadata": grpc.unary_unary_rpc_method_handler(metadata),
            "/grpc.health.v1.Health/Check": None
            if health == "none"
            else grpc.unary_unary_rpc_method_handler(lambda request, context: bytes([8, int(health)])),
        }.get(details.method)


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container ignores it otherwise
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Handlers(),))
server.add_insecure_port(f"0.0.0.0:{port}")
server.start()
print("serving gRPC", flush=True)
server.wait_for_termination()
