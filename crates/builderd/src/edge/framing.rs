//! What is wrong with a request before its messages are: flags of envelopes, time limits.
//!
//! connectrpc takes a client's end-stream flag for an end, reads over flags that it does not know and over time limits
//! that are none, and calls a compressed message without a named compression INTERNAL, as the specifications do for
//! peers that answer. All of these are the caller's mistakes. They are noted here, and the forwarder refuses the call
//! in whatever protocol it came by.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body::Frame;
use tonic::{Code, Status};

use super::{MAX_MESSAGE_BYTES, guard::parse_timeout};
use crate::status::with_info;

/// Flags, then a length of four bytes, before each message.
const HEAD_BYTES: usize = 5;

/// The one flag that a client may set.
const COMPRESSED: u8 = 1;

/// What was found wrong with a request, if anything was. Among the extensions of the request.
#[derive(Clone, Debug, Default)]
pub(super) struct Mistake(Arc<OnceLock<String>>);

impl Mistake {
    /// The status for it.
    pub(super) fn status(&self) -> Option<Status> {
        let message = self.0.get()?;
        Some(with_info(Code::InvalidArgument, message, "MALFORMED_REQUEST", []))
    }

    /// The first one counts.
    fn note(&self, message: String) {
        let _ = self.0.set(message);
    }
}

/// Looks at a request on its way to connectrpc.
pub(super) fn checked(mut request: Request<Body>) -> Request<Body> {
    let mistake = Mistake::default();
    if let Some(message) = wrong_timeout(request.headers()) {
        mistake.note(message);
    }
    request.extensions_mut().insert(mistake.clone());
    let Some(encoding_header) = encoding_header(request.headers()) else {
        return request;
    };
    let encoding = request.headers().get(encoding_header);
    let has_compression = encoding.is_some_and(|value| value != "identity");
    request.map(|body| {
        Body::new(CheckedBody {
            body,
            envelopes: Envelopes {
                encoding_header,
                has_compression,
                position: Position::Head {
                    seen: 0,
                    length_bytes: 0,
                },
            },
            spoiled_bytes: None,
            mistake,
        })
    })
}

/// A time limit in Connect's spelling or gRPC's that cannot be read.
fn wrong_timeout(headers: &HeaderMap) -> Option<String> {
    let is_milliseconds =
        |text: &str| (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = |name: &'static str, expected: &str, is_right: &dyn Fn(&str) -> bool| {
        let value = headers.get(name)?;
        let is_wrong = !value.to_str().is_ok_and(is_right);
        is_wrong.then(|| format!("{name}: expected {expected}, got {value:?}"))
    };
    wrong(
        "connect-timeout-ms",
        "milliseconds in up to 10 digits",
        &is_milliseconds,
    )
    .or_else(|| {
        wrong(
            "grpc-timeout",
            "up to 8 digits and one of H, M, S, m, u, n",
            &|text| parse_timeout(text).is_some(),
        )
    })
}

/// For a request with envelopes: the header that names how messages are compressed.
fn encoding_header(headers: &HeaderMap) -> Option<&'static str> {
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let content_type = content_type.trim_start().to_ascii_lowercase();
    if content_type.starts_with("application/connect+") {
        Some("connect-content-encoding")
    } else if content_type.starts_with("application/grpc") {
        Some("grpc-encoding")
    } else {
        None
    }
}

/// A body of envelopes, up to the first that is not in order.
///
/// In its place comes an empty one, so that the call reaches the forwarder, and what follows is read and dropped.
struct CheckedBody {
    body: Body,
    envelopes: Envelopes,
    /// After the first mistake: what was dropped since.
    spoiled_bytes: Option<usize>,
    mistake: Mistake,
}

impl http_body::Body for CheckedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
            let data = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            };
            if let Some(spoiled) = self.spoiled_bytes {
                // No more than a body in order may have.
                if spoiled > MAX_MESSAGE_BYTES {
                    return Poll::Ready(None);
                }
                self.spoiled_bytes = Some(spoiled + data.len());
                continue;
            }
            let Err(found) = self.envelopes.scan(&data) else {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            };
            self.mistake.note(found.message);
            self.spoiled_bytes = Some(data.len() - found.at);
            let mut good = BytesMut::from(&data[..found.at]);
            good.extend_from_slice(&[0; HEAD_BYTES]);
            return Poll::Ready(Some(Ok(Frame::data(good.freeze()))));
        }
    }
}

/// Follows the envelopes of a body as it arrives in pieces.
#[derive(Debug)]
struct Envelopes {
    encoding_header: &'static str,
    has_compression: bool,
    position: Position,
}

#[derive(Debug)]
enum Position {
    /// So many bytes of a head were seen, and so many bytes follow it as far as is known.
    Head { seen: usize, length_bytes: u32 },
    /// So many bytes of a message are missing.
    Message { missing_bytes: u32 },
}

/// A head that is not in order.
#[derive(Debug, PartialEq, Eq)]
struct BadHead {
    /// Where in the piece it begins.
    at: usize,
    message: String,
}

impl Envelopes {
    fn scan(&mut self, data: &[u8]) -> Result<(), BadHead> {
        let mut at = 0;
        while at < data.len() {
            match &mut self.position {
                Position::Message { missing_bytes } => {
                    let here = data.len() - at;
                    let missing = usize::try_from(*missing_bytes).unwrap_or(usize::MAX);
                    if here < missing {
                        *missing_bytes -= u32::try_from(here).unwrap_or(*missing_bytes);
                        return Ok(());
                    }
                    at += missing;
                    self.position = Position::Head {
                        seen: 0,
                        length_bytes: 0,
                    };
                }
                Position::Head { seen: 0, .. } => {
                    self.flags(data[at]).map_err(|message| BadHead { at, message })?;
                    self.position = Position::Head {
                        seen: 1,
                        length_bytes: 0,
                    };
                    at += 1;
                }
                Position::Head { seen, length_bytes } => {
                    *length_bytes = *length_bytes << 8 | u32::from(data[at]);
                    *seen += 1;
                    at += 1;
                    if *seen == HEAD_BYTES {
                        let missing_bytes = *length_bytes;
                        self.position = Position::Message { missing_bytes };
                    }
                }
            }
        }
        Ok(())
    }

    fn flags(&self, flags: u8) -> Result<(), String> {
        if flags & !COMPRESSED != 0 {
            return Err(format!(
                "the request cannot be read: expected a message with flags 0 or 1 (compressed), got {flags:#04x}"
            ));
        }
        if flags == COMPRESSED && !self.has_compression {
            let header = self.encoding_header;
            return Err(format!(
                "the request cannot be read: a message is compressed, and {header} does not say how"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(pieces: &[&[u8]], has_compression: bool) -> Result<(), (usize, usize)> {
        let mut envelopes = Envelopes {
            encoding_header: "grpc-encoding",
            has_compression,
            position: Position::Head {
                seen: 0,
                length_bytes: 0,
            },
        };
        for (number, piece) in pieces.iter().enumerate() {
            envelopes.scan(piece).map_err(|bad| (number, bad.at))?;
        }
        Ok(())
    }

    #[test]
    fn the_first_head_that_is_not_in_order_is_found_wherever_pieces_end() {
        let two = [0, 0, 0, 0, 3, 9, 9, 9, 2, 0, 0, 0, 0];
        for split in 0..=two.len() {
            let (first, second) = two.split_at(split);
            let expected = match split {
                0..=8 => (1, 8 - split),
                _ => (0, 8),
            };
            assert_eq!(scan(&[first, second], false), Err(expected), "{split}");
        }
        for (name, piece, has_compression, expected) in [
            (
                "empty messages",
                &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
                false,
                Ok(()),
            ),
            (
                "a message with what looks like flags",
                &[0, 0, 0, 0, 2, 7, 7],
                false,
                Ok(()),
            ),
            ("compressed as named", &[1, 0, 0, 0, 1, 7], true, Ok(())),
            (
                "compressed without a name",
                &[1, 0, 0, 0, 1, 7],
                false,
                Err((0, 0)),
            ),
            (
                "end of a Connect stream",
                &[2, 0, 0, 0, 2, b'{', b'}'],
                true,
                Err((0, 0)),
            ),
            ("trailers of gRPC-Web", &[0x80, 0, 0, 0, 0], true, Err((0, 0))),
            (
                "more than there is",
                &[0, 0xff, 0xff, 0xff, 0xff, 1],
                false,
                Ok(()),
            ),
        ] {
            assert_eq!(scan(&[piece], has_compression), expected, "{name}");
        }
    }

    #[test]
    fn a_time_limit_that_is_none_is_named() {
        for (name, value, is_right) in [
            ("connect-timeout-ms", "5", true),
            ("connect-timeout-ms", "9999999999", true),
            ("connect-timeout-ms", "10000000000", false),
            ("connect-timeout-ms", "-5", false),
            ("connect-timeout-ms", "", false),
            ("connect-timeout-ms", "1s", false),
            ("grpc-timeout", "5S", true),
            ("grpc-timeout", "-5S", false),
            ("another", "-5", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            let wrong = wrong_timeout(&headers);
            assert_eq!(wrong.is_none(), is_right, "{name}: {value}: {wrong:?}");
            assert!(wrong.is_none_or(|wrong| wrong.starts_with(name)));
        }
    }
}
