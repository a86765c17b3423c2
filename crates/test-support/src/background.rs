//! A server in a thread of its own, which ends with its handle.

use std::{
    io,
    net::TcpListener,
    os::unix::net::UnixListener,
    thread::{self, JoinHandle},
};

use axum::Router;
use tokio::sync::oneshot;

/// Answers until it is dropped: without grace, so that whoever still reads sees a broken connection. When the drop has
/// returned, the address is free.
#[derive(Debug)]
pub(crate) struct Background {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Serves what a listener accepts.
    pub(crate) fn serve(name: &str, listener: TcpListener, router: Router) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::start(name, async move || {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, router).await
        })
    }

    /// Serves at a socket of the file system.
    pub(crate) fn serve_on(name: &str, listener: UnixListener, router: Router) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::start(name, async move || {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            axum::serve(listener, router).await
        })
    }

    fn start(name: &str, serve: impl AsyncFnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(async move {
                // A listener that fails shows in the test as connections that are refused.
                tokio::select! { _ = serve() => {}, _ = stopped => {} }
            });
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself; then there is nobody to tell.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
