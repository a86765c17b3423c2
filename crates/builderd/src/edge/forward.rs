//! From Connect and gRPC-Web into the tonic services, in the same process.
//!
//! `connectrpc` speaks the protocols and hands over one message as bytes; here it is called on the tonic services by
//! its path, whatever method that is. Bodies in JSON are turned into protobuf and back along the way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use connectrpc::{
    CodecFormat, ConnectError, Dispatcher, EncodedBody, EncodedResponse, EncodedStream, ErrorCode,
    ErrorDetail, Payload, Protocol, RequestContext,
    dispatcher::{MethodDescriptor, RequestStream, StreamingResult, UnaryResult},
};
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderName, uri::PathAndQuery};
use prost::Message as _;
use prost_reflect::{DescriptorPool, MethodDescriptor as ReflectedMethod};
use tonic::{Status, client::Grpc, metadata::MetadataMap};

use super::{
    connection::Peer,
    framing::Mistake,
    guard::{Guard, ProtocolName},
    json,
    raw_codec::RawCodec,
};
use crate::status::RpcStatus;

/// Forwards every method of a set of descriptors.
#[derive(Clone, Debug)]
pub(super) struct Forwarder {
    services: Guard,
    /// By path without the leading slash, as `builder.v1.BuilderService/GetBuild`.
    methods: Arc<HashMap<String, ReflectedMethod>>,
}

impl Forwarder {
    pub(super) fn new(services: Guard, descriptors: &DescriptorPool) -> Self {
        let methods = descriptors
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|method| {
                let path = format!("{}/{}", method.parent_service().full_name(), method.name());
                (path, method)
            });
        Self {
            services,
            methods: Arc::new(methods.collect()),
        }
    }

    /// A call of a caller who may make it: a body is not even parsed for others.
    fn call(&self, path: &str, format: CodecFormat, context: &RequestContext) -> Result<Call, ConnectError> {
        let not_found = || ConnectError::unimplemented(format!("method not found: {path}"));
        let method = self.methods.get(path).cloned().ok_or_else(not_found)?;
        let path = PathAndQuery::try_from(format!("/{path}")).map_err(|_| not_found())?;
        self.services
            .admits(path.path(), context.headers(), context.extensions())
            .map_err(|status| connect_error(&status))?;
        let mistake = context.extensions().get::<Mistake>().cloned().unwrap_or_default();
        refuse_mistake(&mistake)?;
        Ok(Call {
            services: self.services.clone(),
            method,
            path,
            format,
            mistake,
        })
    }
}

impl Dispatcher for Forwarder {
    fn lookup(&self, path: &str) -> Option<MethodDescriptor> {
        let method = self.methods.get(path)?;
        Some(
            match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => MethodDescriptor::unary(false),
                (false, true) => MethodDescriptor::server_streaming(),
                (true, false) => MethodDescriptor::client_streaming(),
                (true, true) => MethodDescriptor::bidi_streaming(),
            },
        )
    }

    fn call_unary(
        &self,
        path: &str,
        ctx: RequestContext,
        request: Payload,
        format: CodecFormat,
    ) -> UnaryResult {
        let call = self.call(path, format, &ctx);
        Box::pin(async move {
            let call = call?;
            let message = call.parse(&request.encoded()?)?;
            call.unary(&ctx, stream::iter([message])).await
        })
    }

    fn call_server_streaming(
        &self,
        path: &str,
        ctx: RequestContext,
        request: Bytes,
        format: CodecFormat,
    ) -> StreamingResult {
        let call = self.call(path, format, &ctx);
        Box::pin(async move {
            let call = call?;
            let message = call.parse(&request)?;
            call.streaming(&ctx, stream::iter([message]), Spoiled::default())
                .await
        })
    }

    fn call_client_streaming(
        &self,
        path: &str,
        ctx: RequestContext,
        requests: RequestStream,
        format: CodecFormat,
    ) -> UnaryResult {
        let call = self.call(path, format, &ctx);
        Box::pin(async move {
            let call = call?;
            let spoiled = Spoiled::default();
            let answer = call.unary(&ctx, call.parse_all(requests, spoiled.clone())).await;
            spoiled.take().map_or(answer, Err)
        })
    }

    fn call_bidi_streaming(
        &self,
        path: &str,
        ctx: RequestContext,
        requests: RequestStream,
        format: CodecFormat,
    ) -> StreamingResult {
        let call = self.call(path, format, &ctx);
        Box::pin(async move {
            let call = call?;
            let spoiled = Spoiled::default();
            let messages = call.parse_all(requests, spoiled.clone());
            call.streaming(&ctx, messages, spoiled).await
        })
    }
}

/// One call of one method.
#[derive(Clone, Debug)]
struct Call {
    services: Guard,
    method: ReflectedMethod,
    path: PathAndQuery,
    format: CodecFormat,
    /// Of a stream of requests, which is read while the call goes on.
    mistake: Mistake,
}

impl Call {
    /// Forwards a call that has an answer of one message.
    async fn unary(
        &self,
        context: &RequestContext,
        messages: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<EncodedResponse, ConnectError> {
        let answer = self
            .client()
            .client_streaming(request(context, messages), self.path.clone(), RawCodec)
            .await;
        let (metadata, message, _) = answer.map_err(|status| connect_error(&status))?.into_parts();
        let mut response = connectrpc::Response::new(EncodedBody::from(self.render(message)?));
        response.headers = reply_headers(metadata);
        Ok(response)
    }

    /// Forwards a call that has an answer of any number of messages, and of what spoiled the request's stream.
    async fn streaming(
        self,
        context: &RequestContext,
        messages: impl Stream<Item = Bytes> + Send + 'static,
        spoiled: Spoiled,
    ) -> Result<connectrpc::Response<EncodedStream>, ConnectError> {
        let answer = self
            .client()
            .streaming(request(context, messages), self.path.clone(), RawCodec)
            .await;
        let (metadata, messages, _) = answer.map_err(|status| connect_error(&status))?.into_parts();
        let messages = messages.map(move |message| match message {
            Ok(message) => self.render(message).map(EncodedBody::from),
            Err(status) => Err(connect_error(&status)),
        });
        let spoiled = stream::once(async move { spoiled.take() }).filter_map(async |error| error.map(Err));
        let body: EncodedStream = Box::pin(messages.chain(spoiled));
        let mut response = connectrpc::Response::new(body);
        response.headers = reply_headers(metadata);
        Ok(response)
    }

    fn client(&self) -> Grpc<Guard> {
        // The services limit what they take, and what they give is our own.
        Grpc::new(self.services.clone()).max_decoding_message_size(usize::MAX)
    }

    /// The request's message as protobuf.
    fn parse(&self, body: &Bytes) -> Result<Bytes, ConnectError> {
        match self.format {
            CodecFormat::Json => {
                json::decode(&self.method.input(), body).map_err(|status| connect_error(&status))
            }
            _ => Ok(body.clone()),
        }
    }

    /// The request's messages as protobuf, up to the first that cannot be read.
    fn parse_all(
        &self,
        messages: RequestStream,
        spoiled: Spoiled,
    ) -> impl Stream<Item = Bytes> + Send + 'static {
        let call = self.clone();
        messages
            .map(move |message| {
                refuse_mistake(&call.mistake)?;
                message.and_then(|message| call.parse(&message))
            })
            .scan(spoiled, |spoiled, message| {
                std::future::ready(message.map_err(|error| spoiled.put(error)).ok())
            })
    }

    /// An answer's message in the caller's format.
    fn render(&self, message: Bytes) -> Result<Bytes, ConnectError> {
        match self.format {
            CodecFormat::Json => json::encode(&self.method.output(), &message).map_err(|error| {
                tracing::error!(error, rpc.method = self.path.as_str(), "Answer has no JSON form");
                ConnectError::internal("the answer has no JSON form")
            }),
            _ => Ok(message),
        }
    }
}

fn refuse_mistake(mistake: &Mistake) -> Result<(), ConnectError> {
    match mistake.status() {
        Some(status) => Err(connect_error(&status)),
        None => Ok(()),
    }
}

/// Why a stream of requests ended early. tonic's streams of requests cannot carry an error, so it goes around them.
#[derive(Clone, Debug, Default)]
struct Spoiled(Arc<Mutex<Option<ConnectError>>>);

impl Spoiled {
    fn put(&self, error: ConnectError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn take(&self) -> Option<ConnectError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Headers that belong to the protocol the caller speaks and not to the call.
fn is_protocol_header(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "connection"
            | "content-type"
            | "content-length"
            | "content-encoding"
            | "accept-encoding"
            | "transfer-encoding"
            | "te"
            | "date"
    ) || name.starts_with("connect-")
        || name.starts_with("grpc-")
}

fn request<M>(context: &RequestContext, messages: M) -> tonic::Request<M> {
    let mut request = tonic::Request::new(messages);
    let headers = context
        .headers()
        .iter()
        .filter(|(name, _)| !is_protocol_header(name));
    let headers: HeaderMap = headers
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    // The translation's own time limit is for reading a request; only the caller's goes along with it.
    let has_deadline = ["connect-timeout-ms", "grpc-timeout"]
        .iter()
        .any(|name| context.headers().contains_key(*name));
    if let Some(remaining) = context.time_remaining().filter(|_| has_deadline) {
        request.set_timeout(remaining);
    }
    let protocol = match context.protocol() {
        Some(Protocol::Connect) => "connect",
        Some(Protocol::GrpcWeb) => "grpc-web",
        _ => "grpc",
    };
    request.extensions_mut().insert(ProtocolName(protocol));
    if let Some(peer) = context.extensions().get::<Peer>() {
        request.extensions_mut().insert(peer.clone());
    }
    request
}

fn reply_headers(metadata: MetadataMap) -> HeaderMap {
    let headers = metadata.into_headers();
    let own = headers.iter().filter(|(name, _)| !is_protocol_header(name));
    own.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// A status with its details in Connect's form.
fn connect_error(status: &Status) -> ConnectError {
    let code = u32::try_from(i32::from(status.code())).ok();
    let code = code
        .and_then(ErrorCode::from_grpc_code)
        .unwrap_or(ErrorCode::Unknown);
    let error =
        ConnectError::new(code, status.message()).with_headers(reply_headers(status.metadata().clone()));
    // Details that are not google.rpc.Status are not ours; without them the error still says what it says.
    let details = RpcStatus::decode(status.details()).unwrap_or_default().details;
    details.into_iter().fold(error, |error, detail| {
        let type_name = detail.type_url.rsplit('/').next().unwrap_or_default();
        error.with_detail(ErrorDetail {
            type_url: type_name.to_owned(),
            value: Some(STANDARD_NO_PAD.encode(&detail.value)),
            debug: None,
        })
    })
}
