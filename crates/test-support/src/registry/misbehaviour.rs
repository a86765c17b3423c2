//! The ways in which a registry can go wrong.

use std::time::Duration;

/// One way in which an answer goes wrong.
#[derive(Clone, Debug)]
pub enum Misbehaviour {
    /// This answer instead of the right one. See [`Misbehaviour::status`].
    Respond {
        /// Status code.
        status: u16,
        /// Headers, name and value.
        headers: Vec<(String, String)>,
        /// Body.
        body: Vec<u8>,
    },
    /// The right headers and so many bytes of the body, then a broken connection.
    CutAt(u64),
    /// The right headers and so many bytes of the body, then nothing until
    /// [`Registry::release`](super::Registry::release).
    StallAt(u64),
    /// Nothing at all, not even headers, until [`Registry::release`](super::Registry::release).
    Hang,
    /// The body in small pieces with a pause before each.
    Drip {
        /// Bytes of a piece, at least 1.
        chunk_bytes: usize,
        /// How long each is held back.
        pause: Duration,
    },
    /// The body at a steady rate, each body by itself: a connection carries one at a time, so this is what a connection gets.
    Throttle {
        /// At least 1.
        bytes_per_second: u64,
    },
    /// One bit in the middle of the body is flipped.
    FlipBit,
    /// `Docker-Content-Digest` names another digest.
    WrongDigestHeader,
    /// Any `Content-Type`.
    ContentType(String),
    /// The body without a `Content-Length`.
    NoContentLength,
    /// The body without a `Content-Length`, and these bytes after it.
    Append(Vec<u8>),
    /// A body of zeros that has no end and no `Content-Length`.
    Endless,
    /// The whole body with status 200, whatever range was asked for.
    IgnoreRange,
    /// A range is answered with 206 and `Content-Range`, but the bytes begin so many bytes too late.
    ShiftRange(u64),
}

impl Misbehaviour {
    /// An empty answer with this status.
    #[must_use]
    pub const fn status(status: u16) -> Self {
        Self::Respond {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A redirect (307) to this URL.
    #[must_use]
    pub fn redirect(location: &str) -> Self {
        Self::status(307).header("location", location)
    }

    /// 429 with `Retry-After`.
    #[must_use]
    pub fn rate_limited(retry_after_seconds: u64) -> Self {
        Self::status(429).header("retry-after", &retry_after_seconds.to_string())
    }

    /// Adds a header to a [`Misbehaviour::Respond`].
    ///
    /// # Panics
    /// For any other kind.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let Self::Respond { headers, .. } = &mut self else {
            panic!("only an answer of its own has headers")
        };
        headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body of a [`Misbehaviour::Respond`].
    ///
    /// # Panics
    /// For any other kind.
    #[must_use]
    pub fn with_body(mut self, content: impl AsRef<[u8]>) -> Self {
        let Self::Respond { body, .. } = &mut self else {
            panic!("only an answer of its own has a body")
        };
        *body = content.as_ref().to_vec();
        self
    }
}
