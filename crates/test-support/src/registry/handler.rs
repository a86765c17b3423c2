//! Requests to answers.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State as Extension},
    http::{HeaderMap, Method, Response, StatusCode, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};

use super::{LoggedRequest, Misbehaviour, Shared, auth, body};

/// A posted form may have so many bytes.
const MAX_FORM_BYTES: usize = 64 * 1024;

/// What was found for a path.
struct Found {
    media_type: String,
    digest: String,
    content: Bytes,
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(handle).with_state(shared)
}

async fn handle(Extension(shared): Extension<Arc<Shared>>, request: Request) -> Response<Body> {
    let (parts, request_body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let mut query = parts.uri.query().unwrap_or_default().to_owned();
    if parts.method == Method::POST
        && let Ok(form) = Limited::new(request_body, MAX_FORM_BYTES).collect().await
    {
        query = String::from_utf8_lossy(&form.to_bytes()).into_owned();
    }
    let misbehaviour = take_rule(&shared, &path);
    // Logged before a hang, so that a test can wait for the request that hangs.
    let log_idx = log(&shared, &parts.method, &path, &query, &parts.headers);
    if matches!(misbehaviour, Some(Misbehaviour::Hang)) {
        body::stall(&shared).await;
    }
    let response = match misbehaviour {
        Some(Misbehaviour::Respond {
            status,
            headers,
            body,
        }) => own_answer(status, &headers, body),
        other => answer(
            &shared,
            &parts.method,
            &path,
            &query,
            &parts.headers,
            other.as_ref(),
        ),
    };
    if let Some(logged) = shared.lock().requests.get_mut(log_idx) {
        logged.status = response.status().as_u16();
    }
    shared.changed.notify_all();
    response
}

fn take_rule(shared: &Shared, path: &str) -> Option<Misbehaviour> {
    let mut state = shared.lock();
    let rule = state
        .rules
        .iter_mut()
        .find(|rule| path.contains(&rule.path_part) && rule.times_left != Some(0))?;
    rule.times_left = rule.times_left.map(|times| times - 1);
    Some(rule.misbehaviour.clone())
}

fn log(shared: &Shared, method: &Method, path: &str, query: &str, headers: &HeaderMap) -> usize {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        all.entry(name.as_str().to_owned())
            .and_modify(|joined| *joined = format!("{joined}, {value}"))
            .or_insert_with(|| value.into_owned());
    }
    let mut state = shared.lock();
    state.requests.push(LoggedRequest {
        method: method.to_string(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: all,
        status: 0,
    });
    shared.changed.notify_all();
    state.requests.len() - 1
}

fn own_answer(status: u16, headers: &[(String, String)], content: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(content));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (header::HeaderName::try_from(name.as_str()), value.parse()) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

fn answer(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    misbehaviour: Option<&Misbehaviour>,
) -> Response<Body> {
    if path == "/token" {
        let parameters: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        return auth::token(shared, headers, &parameters);
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return error(
            StatusCode::NOT_FOUND,
            "UNSUPPORTED",
            "there is nothing outside /v2/",
        );
    };
    let (repository, kind, name) = split(rest);
    if let Some(refusal) = auth::refuse(shared, headers, repository) {
        return refusal;
    }
    if rest.is_empty() {
        return json_response(StatusCode::OK, &json!({}));
    }
    if kind == "tags" {
        let state = shared.lock();
        let tags: Vec<&String> = state
            .tags
            .keys()
            .filter(|(in_repository, _)| in_repository == repository)
            .map(|(_, tag)| tag)
            .collect();
        return json_response(StatusCode::OK, &json!({ "name": repository, "tags": tags }));
    }
    match find(shared, repository, kind, name) {
        Some(found) => send(shared, method, headers, found, misbehaviour),
        None if kind == "manifests" => error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown"),
        None => error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry"),
    }
}

/// `team/app/manifests/1.0` → (`team/app`, `manifests`, `1.0`).
fn split(rest: &str) -> (&str, &str, &str) {
    for kind in ["manifests", "blobs", "tags"] {
        if let Some((repository, name)) = rest.rsplit_once(&format!("/{kind}/")) {
            return (repository, kind, name);
        }
    }
    (rest, "", "")
}

fn find(shared: &Shared, repository: &str, kind: &str, name: &str) -> Option<Found> {
    let state = shared.lock();
    let key = |name: &str| (repository.to_owned(), name.to_owned());
    if kind == "blobs" {
        let content = state.blobs.get(&key(name))?.clone();
        return Some(Found {
            media_type: "application/octet-stream".into(),
            digest: name.into(),
            content,
        });
    }
    let digest = state
        .tags
        .get(&key(name))
        .cloned()
        .unwrap_or_else(|| name.to_owned());
    let manifest = state.manifests.get(&key(&digest))?;
    let content = Bytes::copy_from_slice(&manifest.bytes);
    Some(Found {
        media_type: manifest.media_type.clone(),
        digest,
        content,
    })
}

fn send(
    shared: &Arc<Shared>,
    method: &Method,
    headers: &HeaderMap,
    found: Found,
    misbehaviour: Option<&Misbehaviour>,
) -> Response<Body> {
    let Found {
        mut media_type,
        mut digest,
        mut content,
    } = found;
    let mut has_length = true;
    match misbehaviour {
        Some(Misbehaviour::FlipBit) => content = flip_bit(&content),
        Some(Misbehaviour::WrongDigestHeader) => digest = crate::image::digest(b"something else"),
        Some(Misbehaviour::ContentType(other)) => media_type.clone_from(other),
        Some(Misbehaviour::NoContentLength | Misbehaviour::Endless) => has_length = false,
        Some(Misbehaviour::Append(tail)) => {
            content = [&*content, tail].concat().into();
            has_length = false;
        }
        _ => {}
    }
    let total = content.len();
    let range = match misbehaviour {
        Some(Misbehaviour::IgnoreRange) => None,
        _ => headers
            .get(header::RANGE)
            .and_then(|value| parse_range(value.to_str().ok()?, total)),
    };
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, media_type)
        .header(header::ACCEPT_RANGES, "bytes")
        .header("docker-content-digest", digest);
    match range {
        Some((start, end)) if start < end => {
            let shift = match misbehaviour {
                Some(Misbehaviour::ShiftRange(bytes)) => usize::try_from(*bytes).unwrap_or(0),
                _ => 0,
            };
            response = response.status(StatusCode::PARTIAL_CONTENT).header(
                header::CONTENT_RANGE,
                format!("bytes {start}-{}/{total}", end - 1),
            );
            content = content.slice((start + shift).min(end)..end);
        }
        Some(_) => {
            response = response
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{total}"));
            content = Bytes::new();
        }
        None => {}
    }
    if has_length {
        response = response.header(header::CONTENT_LENGTH, content.len());
    }
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        body::body(shared, content, misbehaviour)
    };
    response
        .body(body)
        .unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "a bad header"))
}

/// `bytes=A-` and `bytes=A-B` as a half-open range; an empty one cannot be satisfied.
fn parse_range(value: &str, total: usize) -> Option<(usize, usize)> {
    let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
    let start = start.parse().ok()?;
    let end = if end.is_empty() {
        total
    } else {
        end.parse::<usize>().ok()?.saturating_add(1).min(total)
    };
    Some((start, end))
}

fn flip_bit(content: &Bytes) -> Bytes {
    let mut copy = content.to_vec();
    let middle = copy.len() / 2;
    if let Some(byte) = copy.get_mut(middle) {
        *byte ^= 0x10;
    }
    copy.into()
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    json_response(
        status,
        &json!({ "errors": [{ "code": code, "message": message }] }),
    )
}

pub(super) fn json_response(status: StatusCode, document: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}
