//! What a server is asked, and what it says.

use std::collections::BTreeMap;
use std::time::Duration;

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// How many requests with this method and path came before.
    pub nth: usize,
}

impl Seen {
    pub fn authorization(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }

    /// First and last byte asked for.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self
            .headers
            .get("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }

    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/") && self.method == "GET"
    }
}

/// What the server sends back.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub manner: Manner,
}

/// How the body goes out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Whole,
    /// Closes the connection after so many bytes.
    CutAt(usize),
    /// Sends nothing more after so many bytes, and keeps the connection.
    StallAt(usize),
    /// One byte at a time, with a pause after each.
    Drip(Duration),
    /// Without `Content-Length`, in chunks.
    Chunked,
    /// The body over and over, in chunks, until the client closes.
    Endless,
    /// The body is the whole of what goes out, head and all.
    Raw,
    /// As `Raw`, and the connection is kept until the client closes.
    RawThenHang,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            manner: Manner::Whole,
        }
    }

    pub fn ok(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new(200).header("content-type", content_type).body(body)
    }

    pub fn redirect(location: &str) -> Self {
        Self::new(307).header("location", location)
    }

    pub fn challenge(challenge: &str) -> Self {
        Self::new(401).header("www-authenticate", challenge)
    }

    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(0).body(bytes).manner(Manner::Raw)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }
}
