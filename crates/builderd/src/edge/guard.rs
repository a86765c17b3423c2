//! What every call gets, whatever protocol it came by: a span, a known caller, a deadline, and an answer even if the
//! handler panics.
//!
//! The guard stands directly around the tonic services, inside the translation from Connect and gRPC-Web, so that it
//! speaks plain gRPC and every protocol renders its statuses in its own way. (tonic enforces deadlines and catches
//! panics only in its own transport server, which is not used here.)

use std::{
    any::Any,
    collections::HashSet,
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use builder_core::audit::Actor;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Extensions, HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body, service::Routes};
use tower::Service;
use tracing::{Instrument as _, Span, field};

use super::{MAX_MESSAGE_BYTES, connection::Peer};
use crate::{
    audit::{AuditLog, Call, Trail},
    auth::{Authentication, Caller},
    status::with_info,
    telemetry,
    tls::PeerCertificate,
};

/// Methods below this path are for callers who have shown who they are. The others tell nothing about anybody.
const AUTHENTICATED: &str = "/builder.v1.";

/// The header in which a client says which of its users asks. It is for the log and decides nothing.
const USER_HEADER: &str = "x-user-id";

/// Longer names are not logged.
const MAX_USER_BYTES: usize = 128;

/// How long a method with one answer may take when the caller sets no deadline. They all answer at once; this one only
/// keeps a body that never ends from holding a call open.
const DEFAULT_UNARY_DEADLINE: Duration = Duration::from_secs(60);

/// Which protocol a call came by, for the span. Absent for gRPC itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProtocolName(pub(super) &'static str);

/// The tonic services with the guard around them.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    routes: Routes,
    /// Paths of methods with a stream in either direction: they have no default deadline.
    streaming: Arc<HashSet<String>>,
    authentication: Authentication,
    audit: Option<AuditLog>,
}

impl Guard {
    pub(super) fn new(
        routes: Routes,
        streaming: HashSet<String>,
        authentication: Authentication,
        audit: Option<AuditLog>,
    ) -> Self {
        Self {
            routes: routes.prepare(),
            streaming: Arc::new(streaming),
            authentication,
            audit,
        }
    }

    /// What will be in the audit log of a call, if it has to be.
    fn audited(
        &self,
        path: &str,
        headers: &HeaderMap,
        extensions: &Extensions,
        caller: Result<Option<&Caller>, &Status>,
        trail: Trail,
    ) -> Option<Call> {
        let log = self.audit.clone()?;
        let id = certificate(extensions)
            .and_then(|certificate| certificate.spiffe_id.as_ref())
            .map(ToString::to_string);
        let (kind, tenant) = match caller {
            Ok(None) => return None,
            Ok(Some(Caller::Unchecked)) => ("unchecked", None),
            Ok(Some(Caller::Tenant(tenant))) => ("tenant", Some(tenant.to_string())),
            Ok(Some(Caller::Service)) => ("service", None),
            Err(_) => ("unknown", None),
        };
        let actor = Actor {
            kind: kind.to_owned(),
            id: id.or(tenant),
            user: user(headers).map(str::to_owned),
            address: extensions.get::<Peer>().map(|peer| peer.address.to_string()),
        };
        Some(Call::new(log, path, actor, trail))
    }

    /// Whether a call of this path, with these headers and by this connection, would get past authentication.
    pub(super) fn admits(
        &self,
        path: &str,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<(), Status> {
        match path.starts_with(AUTHENTICATED) {
            true => {
                let caller = self.authentication.caller(headers, certificate(extensions));
                if let Err(status) = &caller {
                    let call = self.audited(path, headers, extensions, Err(status), Trail::default());
                    if let Some(call) = call {
                        call.ended(status.code(), status.message());
                    }
                }
                caller.map(drop)
            }
            false => Ok(()),
        }
    }

    /// Whether the method with this path has a stream in either direction.
    pub(super) fn is_streaming(&self, path: &str) -> bool {
        self.streaming.contains(path)
    }

    async fn handle(
        mut routes: Routes,
        request: Request<Body>,
        admitted: Result<Option<Deadline>, Status>,
        audited: Option<Call>,
    ) -> Response<Body> {
        let end = CallEnd {
            span: Span::current(),
            started: Instant::now(),
            audited,
            told: false,
        };
        let deadline = match admitted {
            Ok(deadline) => deadline,
            Err(status) => return guarded(end, status.into_http(), None),
        };
        // A handler that panics has moved what it held into its future, which is dropped with it.
        let call = AssertUnwindSafe(async move { routes.call(request).await }).catch_unwind();
        let outcome = match &deadline {
            Some(deadline) => match tokio::time::timeout_at(deadline.at, call).await {
                Ok(outcome) => outcome,
                Err(_) => return guarded(end, deadline.exceeded().into_http(), None),
            },
            None => call.await,
        };
        match outcome {
            Ok(Ok(response)) => match unreadable_request(response.headers()) {
                Some(status) => guarded(end, status.into_http(), None),
                None => guarded(end, response, deadline),
            },
            Ok(Err(never)) => match never {},
            Err(panic) => guarded(end, panicked(panic.as_ref()).into_http(), None),
        }
    }
}

impl Service<Request<Body>> for Guard {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Routes are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let caller = match request.uri().path().starts_with(AUTHENTICATED) {
            true => self
                .authentication
                .caller(request.headers(), certificate(request.extensions()))
                .map(Some),
            false => Ok(None),
        };
        // Whoever comes after has no use for it, and cannot log it by mistake.
        request.headers_mut().remove(http::header::AUTHORIZATION);
        let method = request.uri().path();
        let protocol = request
            .extensions()
            .get::<ProtocolName>()
            .map_or("grpc", |name| name.0);
        let peer = request.extensions().get::<Peer>();
        let span = tracing::info_span!(
            "request",
            otel.name = method.trim_start_matches('/'),
            otel.kind = "server",
            otel.status_code = field::Empty,
            rpc.method = method,
            rpc.protocol = protocol,
            client.addr = peer.map(|peer| field::display(peer.address)),
            client.id = certificate(request.extensions())
                .and_then(|certificate| certificate.spiffe_id.as_ref())
                .map(field::display),
            tenant.id = field::Empty,
            user.id = user(request.headers()),
            rpc.code = field::Empty,
        );
        telemetry::continue_trace(&span, request.headers());
        let default = (!self.streaming.contains(method)).then_some(DEFAULT_UNARY_DEADLINE);
        let deadline = Deadline::from_headers(request.headers(), default);
        let trail = Trail::default();
        let audited = self.audited(
            method,
            request.headers(),
            request.extensions(),
            caller.as_ref().map(Option::as_ref),
            trail.clone(),
        );
        request.extensions_mut().insert(trail);
        let admitted = caller.and_then(|caller| {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            deadline
        });
        let routes = self.routes.clone();
        let call = Self::handle(routes, request, admitted, audited);
        Box::pin(call.map(Ok).instrument(span))
    }
}

/// What the connection's other end showed in the handshake.
fn certificate(extensions: &Extensions) -> Option<&PeerCertificate> {
    extensions.get::<Peer>()?.certificate.as_deref()
}

/// The user whom a client names.
fn user(headers: &HeaderMap) -> Option<&str> {
    let name = headers.get(USER_HEADER)?.to_str().ok()?;
    (name.len() <= MAX_USER_BYTES).then_some(name)
}

/// The status for a request that tonic could not read, in place of tonic's own.
///
/// What a handler refuses carries details. A status without them, in an answer without messages, comes from tonic
/// reading the request: it calls a body that is no such message INTERNAL, which would be a fault of ours, and one that
/// is too large OUT_OF_RANGE.
fn unreadable_request(headers: &HeaderMap) -> Option<Status> {
    let status = Status::from_header_map(headers).filter(|status| status.details().is_empty())?;
    match status.code() {
        Code::Internal => {
            let message = format!("the request cannot be read: {}", status.message());
            Some(with_info(
                Code::InvalidArgument,
                &message,
                "MALFORMED_REQUEST",
                [],
            ))
        }
        Code::OutOfRange => {
            let message =
                format!("the request is too large: expected messages of at most {MAX_MESSAGE_BYTES} bytes");
            Some(with_info(
                Code::ResourceExhausted,
                &message,
                "MESSAGE_TOO_LARGE",
                [],
            ))
        }
        _ => None,
    }
}

/// The moment at which a call has to be answered.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    fn from_headers(headers: &HeaderMap, default: Option<Duration>) -> Result<Option<Self>, Status> {
        let asked = match headers.get("grpc-timeout") {
            None => None,
            Some(value) => {
                let parsed = value.to_str().ok().and_then(parse_timeout);
                Some(parsed.ok_or_else(|| {
                    Status::invalid_argument(format!(
                        "grpc-timeout: expected up to 8 digits and one of H, M, S, m, u, n, got {value:?}"
                    ))
                })?)
            }
        };
        // A caller may have less time than others, and not more.
        let timeout = match (asked, default) {
            (Some(asked), Some(default)) => Some(asked.min(default)),
            (asked, default) => asked.or(default),
        };
        Ok(timeout.map(|timeout| Self {
            // 8 digits of hours are more than the clock can add up.
            at: Instant::now() + timeout.min(Duration::from_secs(365 * 24 * 3600)),
            timeout,
        }))
    }

    fn exceeded(&self) -> Status {
        let message = format!("the call was not answered within {:?}", self.timeout);
        with_info(Code::DeadlineExceeded, &message, "DEADLINE_EXCEEDED", [])
    }
}

/// Reads `grpc-timeout`: 1 to 8 digits and a unit (gRPC over HTTP/2, "Timeout").
pub(super) fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Status {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    crate::status::internal(&HandlerPanicked(text.unwrap_or("no message").to_owned()))
}

#[derive(Debug, thiserror::Error)]
#[error("the handler panicked: {0}")]
struct HandlerPanicked(String);

/// Puts the guard around an answer's body.
fn guarded(mut end: CallEnd, response: Response<Body>, deadline: Option<Deadline>) -> Response<Body> {
    // An answer without messages has its status among the headers.
    if let Some(status) = Status::from_header_map(response.headers()) {
        end.tell(status.code(), status.message());
    }
    response.map(|body| {
        Body::new(GuardedBody {
            body: Some(body),
            deadline: deadline.map(|deadline| (deadline, Box::pin(tokio::time::sleep_until(deadline.at)))),
            end,
        })
    })
}

/// A body that ends in time and with a status.
struct GuardedBody {
    /// None once the guard has ended the call itself.
    body: Option<Body>,
    deadline: Option<(Deadline, Pin<Box<Sleep>>)>,
    end: CallEnd,
}

impl GuardedBody {
    /// Ends the call with a status of the guard's own.
    fn cut(&mut self, status: &Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.body = None;
        self.end.tell(status.code(), status.message());
        let mut trailers = HeaderMap::new();
        Some(
            status
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        )
    }
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let span = this.end.span.clone();
        let _entered = span.enter();
        let Some(body) = this.body.as_mut() else {
            return Poll::Ready(None);
        };
        if let Some((deadline, sleep)) = this.deadline.as_mut()
            && sleep.as_mut().poll(context).is_ready()
        {
            let status = deadline.exceeded();
            return Poll::Ready(this.cut(&status));
        }
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(context)));
        match polled {
            Err(panic) => {
                let status = panicked(panic.as_ref());
                Poll::Ready(this.cut(&status))
            }
            Ok(polled) => {
                let frame = ready!(polled);
                match &frame {
                    Some(Ok(frame)) => {
                        if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                            this.end.tell(status.code(), status.message());
                        }
                    }
                    Some(Err(status)) => this.end.tell(status.code(), status.message()),
                    None => this.end.tell(Code::Ok, ""),
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // The guard may end the body early: nothing is promised.
        SizeHint::default()
    }
}

/// Tells once, in the call's span, how the call ended.
#[derive(Debug)]
struct CallEnd {
    span: Span,
    started: Instant,
    /// Also told to the audit log.
    audited: Option<Call>,
    told: bool,
}

impl CallEnd {
    fn tell(&mut self, code: Code, message: &str) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        if let Some(call) = self.audited.take() {
            call.ended(code, message);
        }
        self.span.record("rpc.code", field::debug(code));
        // As OpenTelemetry has it for servers: what a caller did wrong is no error of the service.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            self.span.record("otel.status_code", "ERROR");
        }
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.span.in_scope(|| match code {
            Code::Ok => tracing::debug!(duration_ms = milliseconds, "Request finished"),
            _ => tracing::info!(duration_ms = milliseconds, "Request finished"),
        });
    }
}

impl Drop for CallEnd {
    fn drop(&mut self) {
        // Nobody read on: the caller went away.
        self.tell(Code::Cancelled, "the caller went away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_may_have_less_time_and_not_more() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        for (asked, default, expected) in [
            (None, Some(minute), Some(minute)),
            (Some("5S"), Some(minute), Some(Duration::from_secs(5))),
            (Some("1H"), Some(minute), Some(minute)),
            (Some("1H"), None, Some(hour)),
            (None, None, None),
        ] {
            let headers: HeaderMap = asked
                .map(|asked| {
                    (
                        http::HeaderName::from_static("grpc-timeout"),
                        asked.parse().unwrap(),
                    )
                })
                .into_iter()
                .collect();
            let deadline = Deadline::from_headers(&headers, default).unwrap();
            assert_eq!(
                deadline.map(|deadline| deadline.timeout),
                expected,
                "{asked:?} {default:?}"
            );
        }
    }

    #[test]
    fn timeouts_are_read_as_grpc_spells_them() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("123456789S", None),
            ("1ſ", None),
            ("1 S", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text:?}");
        }
    }
}
