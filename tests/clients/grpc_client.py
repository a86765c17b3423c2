"""A gRPC client with nothing but the descriptors: creates a build, streams its log to the end, prints what it saw.

Usage: grpc_client.py ADDRESS DESCRIPTOR_SET REQUEST_JSON TENANT [CA CERTIFICATE KEY]

With the three files, in PEM, over TLS.
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

address, descriptor_set, request, tenant, *files = sys.argv[1:]
pool = descriptor_pool.DescriptorPool()
with open(descriptor_set, "rb") as file:
    for proto in descriptor_pb2.FileDescriptorSet.FromString(file.read()).file:
        pool.AddSerializedFile(proto.SerializeToString())


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("builder.v1." + name))



def content(path):
    with open(path, "rb") as file:
        return file.read()


if files:
    authorities, certificate, key = map(content, files)
    credentials = grpc.ssl_channel_credentials(authorities, key, certificate)
    channel = grpc.secure_channel(address, credentials, compression=grpc.Compression.Gzip)
else:
    channel = grpc.insecure_channel(address, compression=grpc.Compression.Gzip)


def method(kind, name):
    return kind(
        "/builder.v1.BuilderService/" + name,
        request_serializer=lambda value: value.SerializeToString(),
        response_deserializer=message(name + "Response").FromString,
    )


create = method(channel.unary_unary, "CreateBuild")
stream = method(channel.unary_stream, "StreamBuildLogs")
get = method(channel.unary_unary, "GetBuild")

created = create(json_format.Parse(request, message("CreateBuildRequest")()), timeout=30)
who = {"build_id": created.build_id, "tenant_id": tenant}
sequences = [line.sequence for line in stream(message("StreamBuildLogsRequest")(follow=True, **who), timeout=120)]
build = get(message("GetBuildRequest")(**who), timeout=30).build
states = pool.FindEnumTypeByName("builder.v1.BuildState").values_by_number

refused = None
try:
    # Well-formed, and of no build.
    other = created.build_id[:-8] + "00000000"
    get(message("GetBuildRequest")(build_id=other, tenant_id=tenant), timeout=30)
except grpc.RpcError as error:
    refused = error.code().name

print(json.dumps({
    "build_id": created.build_id,
    "sequences": sequences,
    "state": states[build.state].name,
    "refused": refused,
}))
