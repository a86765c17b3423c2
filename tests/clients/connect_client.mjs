// A Connect client with nothing but the descriptors: creates a build, streams its log to the end, prints what it saw.
//
// Usage: connect_client.mjs TRANSPORT BASE_URL DESCRIPTOR_SET REQUEST_JSON TENANT MODULES
//
// TRANSPORT is PROTOCOL/CODEC/HTTP: connect, grpc or grpc-web; proto or json; 1.1 or 2.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [transportName, baseUrl, descriptorSet, request, tenant, modules] = process.argv.slice(2);
const require = createRequire(modules + "/");
const { createFileRegistry, fromBinary, fromJson } = require("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = require("@bufbuild/protobuf/wkt");
const { createClient, Code, ConnectError } = require("@connectrpc/connect");
const node = require("@connectrpc/connect-node");

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptorSet)));
const service = registry.getService("builder.v1.BuilderService");
const [protocol, codec, httpVersion] = transportName.split("/");
const createTransport = {
  "connect": node.createConnectTransport,
  "grpc": node.createGrpcTransport,
  "grpc-web": node.createGrpcWebTransport,
}[protocol];
const transport = createTransport({ baseUrl, httpVersion, useBinaryFormat: codec === "proto" });
const client = createClient(service, transport);

const created = await client.createBuild(fromJson(service.method.createBuild.input, JSON.parse(request)));
const who = { buildId: created.buildId, tenantId: tenant };
const sequences = [];
for await (const line of client.streamBuildLogs({ ...who, follow: true })) {
  sequences.push(Number(line.sequence));
}
const { build } = await client.getBuild(who);
const states = registry.getEnum("builder.v1.BuildState");

let refused = null;
try {
  // Well-formed, and of no build.
  await client.getBuild({ buildId: created.buildId.slice(0, -8) + "00000000", tenantId: tenant });
} catch (error) {
  refused = Code[ConnectError.from(error).code];
}

console.log(JSON.stringify({
  build_id: created.buildId,
  sequences,
  state: states.value[build.state].name,
  refused,
}));
process.exit(0);
