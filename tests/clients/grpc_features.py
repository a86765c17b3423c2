"""A gRPC client that knows nothing: finds the methods by reflection, and tries what gRPC promises.

Usage: grpc_features.py ADDRESS REQUEST_JSON TENANT

The image of the request must never come, so that the build stands still.
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

address, request, tenant = sys.argv[1:]
channel = grpc.insecure_channel(address, compression=grpc.Compression.Gzip)
pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
service = pool.FindServiceByName("builder.v1.BuilderService")
saw = {"methods": [method.name for method in service.methods]}


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("builder.v1." + name))


def method(kind, name, raw=False):
    return kind(
        "/builder.v1.BuilderService/" + name,
        request_serializer=(lambda value: value) if raw else (lambda value: value.SerializeToString()),
        response_deserializer=message(name + "Response").FromString,
    )


def code_of(call):
    try:
        call()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


check = health_pb2.HealthCheckRequest(service="builder.v1.BuilderService")
health = health_pb2_grpc.HealthStub(channel).Check(check, timeout=30)
saw["health"] = health_pb2.HealthCheckResponse.ServingStatus.Name(health.status)

create = method(channel.unary_unary, "CreateBuild")
get = method(channel.unary_unary, "GetBuild")
stream = method(channel.unary_stream, "StreamBuildLogs")
created = create(json_format.Parse(request, message("CreateBuildRequest")()), timeout=30)
who = {"build_id": created.build_id, "tenant_id": tenant}
follow = message("StreamBuildLogsRequest")(follow=True, **who)


saw["deadline"] = code_of(lambda: list(stream(follow, timeout=3)))

call = stream(follow)
next(call)
call.cancel()
saw["cancelled"] = code_of(lambda: list(call))

# A field of 100 bytes, of which none is there.
saw["malformed"] = code_of(lambda: method(channel.unary_unary, "GetBuild", raw=True)(b"\x0a\x64", timeout=30))
saw["oversized"] = code_of(
    lambda: get(message("GetBuildRequest")(build_id="x" * (5 << 20), tenant_id=tenant), timeout=30))

# google.rpc.Status and google.rpc.BadRequest, read by hand: their Python package is one more than this needs.
try:
    get(message("GetBuildRequest")(build_id="x", tenant_id=tenant), timeout=30)
except grpc.RpcError as error:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    saw["violations"] = ["build_id"] if b"google.rpc.BadRequest" in details and b"build_id" in details else []

method(channel.unary_unary, "CancelBuild")(message("CancelBuildRequest")(**who), timeout=60)
build = get(message("GetBuildRequest")(**who), timeout=30).build
saw["state"] = pool.FindEnumTypeByName("builder.v1.BuildState").values_by_number[build.state].name
print(json.dumps(saw))
