//! One call, by any protocol, down to the bytes.

use std::net::SocketAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use builderd::proto;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt as _;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;
use tonic::{Code, Status};

use super::{client, envelope, frames};

/// How a call travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    GrpcWeb,
    ConnectJson,
    ConnectProto,
}

impl Protocol {
    pub const ALL: [Self; 4] = [Self::Grpc, Self::GrpcWeb, Self::ConnectJson, Self::ConnectProto];
}

/// A request's message as the protocol writes it, without an envelope.
pub fn encoded(protocol: Protocol, method: &str, body: &Value) -> Vec<u8> {
    if protocol == Protocol::ConnectJson {
        return body.to_string().into_bytes();
    }
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("compiled in");
    let descriptor = pool
        .get_message_by_name(&format!("builder.v1.{method}Request"))
        .expect("a method of the service");
    DynamicMessage::deserialize(descriptor, body)
        .expect("a body in order")
        .encode_to_vec()
}

/// Calls a method of the service. What it answers is dropped, what it refuses comes back.
pub async fn call(
    address: SocketAddr,
    protocol: Protocol,
    method: &str,
    headers: &[(&str, &str)],
    message: Vec<u8>,
) -> Result<(), Status> {
    call_framed(
        address,
        protocol,
        method,
        headers,
        framed(protocol, method, &message),
    )
    .await
}

/// A message as it is sent: in an envelope, where protocol and method have one.
pub fn framed(protocol: Protocol, method: &str, message: &[u8]) -> Vec<u8> {
    match protocol {
        Protocol::Grpc | Protocol::GrpcWeb => envelope(message),
        Protocol::ConnectJson | Protocol::ConnectProto if is_stream(method) => envelope(message),
        Protocol::ConnectJson | Protocol::ConnectProto => message.to_vec(),
    }
}

/// The same with a body that is sent as it is.
pub async fn call_framed(
    address: SocketAddr,
    protocol: Protocol,
    method: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<(), Status> {
    let url = format!("http://{address}/builder.v1.BuilderService/{method}");
    match protocol {
        Protocol::Grpc => grpc(address, &url, headers, body).await,
        Protocol::GrpcWeb => grpc_web(&url, headers, body).await,
        Protocol::ConnectJson => connect(&url, "json", is_stream(method), headers, body).await,
        Protocol::ConnectProto => connect(&url, "proto", is_stream(method), headers, body).await,
    }
}

fn is_stream(method: &str) -> bool {
    method == "StreamBuildLogs"
}

async fn grpc(address: SocketAddr, url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<(), Status> {
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("a server that listens");
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .expect("a server that speaks HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::post(url)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value))
        .body(http_body_util::Full::new(Bytes::from(body)))
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let in_headers = Status::from_header_map(response.headers());
    let body = response.into_body().collect().await.expect("a body");
    let status = in_headers.or_else(|| Status::from_header_map(body.trailers()?));
    ended(status.expect("a status"))
}

async fn grpc_web(url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<(), Status> {
    let response = post(url, "application/grpc-web+proto", headers, body).await;
    let in_headers = Status::from_header_map(response.headers());
    let bytes = response.bytes().await.expect("a body");
    if let Some(status) = in_headers {
        return ended(status);
    }
    let frames = frames(&bytes);
    let (_, trailers) = frames
        .iter()
        .find(|(flags, _)| flags & 0x80 != 0)
        .expect("trailers");
    let mut map = HeaderMap::new();
    for line in String::from_utf8_lossy(trailers).lines() {
        let (name, value) = line.split_once(':').expect("a header");
        map.insert(
            HeaderName::try_from(name.trim()).expect("a name"),
            HeaderValue::try_from(value.trim()).expect("a value"),
        );
    }
    ended(Status::from_header_map(&map).expect("a status"))
}

async fn connect(
    url: &str,
    codec: &str,
    stream: bool,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<(), Status> {
    let content_type = match stream {
        true => format!("application/connect+{codec}"),
        false => format!("application/{codec}"),
    };
    let response = post(url, &content_type, headers, body).await;
    let succeeded = response.status() == 200;
    let bytes = response.bytes().await.expect("a body");
    let error = if stream {
        let mut frames = frames(&bytes);
        let (flags, end) = frames.pop().expect("an end");
        assert_eq!(flags & 2, 2, "the last frame is the end");
        serde_json::from_slice::<Value>(&end).expect("JSON")["error"].take()
    } else if succeeded {
        return Ok(());
    } else {
        serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("not JSON: {bytes:?}"))
    };
    if error.is_null() {
        return Ok(());
    }
    let code = error["code"].as_str().expect("a code");
    let details = error["details"].as_array().cloned().unwrap_or_default();
    let details = details
        .iter()
        .map(|detail| prost_types::Any {
            type_url: format!("type.googleapis.com/{}", detail["type"].as_str().expect("a type")),
            value: STANDARD_NO_PAD
                .decode(detail["value"].as_str().expect("a value"))
                .expect("base64"),
        })
        .collect();
    let message = error["message"].as_str().unwrap_or_default();
    let status = builderd::status::RpcStatus {
        details,
        ..Default::default()
    };
    Err(Status::with_details(
        code_named(code),
        message,
        status.encode_to_vec().into(),
    ))
}

async fn post(url: &str, content_type: &str, headers: &[(&str, &str)], body: Vec<u8>) -> reqwest::Response {
    let request = client().post(url).header("content-type", content_type);
    headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value))
        .body(body)
        .send()
        .await
        .expect("an answer")
}

fn ended(status: Status) -> Result<(), Status> {
    match status.code() {
        Code::Ok => Ok(()),
        _ => Err(status),
    }
}

fn code_named(name: &str) -> Code {
    let named = (0..17).map(Code::from).find(|code| {
        let spelt = format!("{code:?}");
        spelt.eq_ignore_ascii_case(&name.replace('_', ""))
    });
    named.unwrap_or_else(|| panic!("{name}"))
}
