//! An S3 server of this process that keeps objects in a directory, checks signatures, and misbehaves when it is told to.
//!
//! The server is `s3s` with `s3s-fs`. Without keys it takes requests without signatures: the XML interface of Google
//! Cloud Storage has the same shape, so that the client for it can be tried out on it. That proves what the client sends,
//! and nothing about Google's service.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::{
    convert::Infallible,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use s3s::{
    Body,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

pub const BUCKET: &str = "images";
pub const ACCESS_KEY: &str = "AKIDEXAMPLE";
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A server; it ends when this is dropped.
pub struct S3Server {
    directory: TempDir,
    endpoint: String,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Method, path and query of all requests.
    requests: Mutex<Vec<(Method, String)>>,
    /// So many requests with this in their path or query are answered with 503.
    failing: Mutex<Option<(String, usize)>>,
    /// Requests with this in their path or query are not answered.
    hanging: Mutex<Option<String>>,
    hung: AtomicUsize,
    changed: Notify,
    unsigned: bool,
}

impl S3Server {
    /// Wants requests signed with [`ACCESS_KEY`] and [`SECRET_KEY`].
    pub async fn start() -> Self {
        Self::start_with(true).await
    }

    pub async fn start_with(signed: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(directory.path()).unwrap());
        if signed {
            builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        }
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            unsigned: !signed,
            ..State::default()
        });
        let serving = tokio::spawn(serve(listener, service, Arc::clone(&state)));
        Self {
            directory,
            endpoint,
            state,
            serving,
        }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The objects of the bucket, by name.
    pub fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let bucket = self.directory.path().join(BUCKET);
        let mut objects: Vec<_> = super::files_below(&bucket)
            .into_iter()
            .map(|path| {
                let name = path.strip_prefix(&bucket).unwrap().to_str().unwrap().to_owned();
                (name, fs::read(path).unwrap())
            })
            .collect();
        objects.sort();
        objects
    }

    pub fn names(&self) -> Vec<String> {
        self.objects().into_iter().map(|(name, _)| name).collect()
    }

    /// What the server keeps of uploads that were neither completed nor aborted.
    pub fn unfinished_parts(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file() && path.to_string_lossy().contains("upload"))
            .collect()
    }

    pub fn requests(&self, method: &Method, part: &str) -> usize {
        let requests = self.state.requests.lock().unwrap();
        let fits = |(how, what): &&(Method, String)| how == method && what.contains(part);
        requests.iter().filter(fits).count()
    }

    pub fn fail_times(&self, part: &str, times: usize) {
        *self.state.failing.lock().unwrap() = Some((part.to_owned(), times));
    }

    pub fn hang(&self, part: &str) {
        *self.state.hanging.lock().unwrap() = Some(part.to_owned());
    }

    pub fn behave(&self) {
        *self.state.failing.lock().unwrap() = None;
        *self.state.hanging.lock().unwrap() = None;
    }

    /// Waits until a request hangs.
    pub async fn hung(&self) {
        loop {
            let changed = self.state.changed.notified();
            if self.state.hung.load(Ordering::SeqCst) > 0 {
                return;
            }
            tokio::time::timeout(super::PATIENCE, changed).await.unwrap();
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, service: S3Service, state: Arc<State>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (service, state) = (service.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(service.clone(), Arc::clone(&state), request));
            // A client that goes away ends its connection.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(socket), answer)
                .await;
        });
    }
}

async fn answer(
    service: S3Service,
    state: Arc<State>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let what = request
        .uri()
        .path_and_query()
        .map_or("", |what| what.as_str())
        .to_owned();
    let entry = (request.method().clone(), what.clone());
    state.requests.lock().unwrap().push(entry);
    let hangs = state
        .hanging
        .lock()
        .unwrap()
        .as_ref()
        .is_some_and(|part| what.contains(part));
    if hangs {
        state.hung.fetch_add(1, Ordering::SeqCst);
        // Keeps a permit for who comes to wait later.
        state.changed.notify_one();
        std::future::pending::<()>().await;
    }
    let fails = match &mut *state.failing.lock().unwrap() {
        Some((part, times)) if *times > 0 && what.contains(part.as_str()) => {
            *times -= 1;
            true
        }
        _ => false,
    };
    if fails {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return Ok(response);
    }
    if state.unsigned {
        // Cloud Storage's client without OAuth sends an empty token, which S3 does not know.
        request.headers_mut().remove(http::header::AUTHORIZATION);
    }
    let response = hyper::service::Service::call(&service, request).await;
    Ok(response.unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }))
}
