//! When to ask again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

use crate::config::RetryPolicy;
use crate::error::{FetchError, FetchErrorKind};

/// Counts the attempts at one request.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: RetryPolicy,
    failed: u32,
}

impl Attempts {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self { policy, failed: 0 }
    }

    /// The last request got on: what fails next starts counting anew.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Sleeps before the next attempt, or gives the error back when there is to be none: because the error is not a
    /// passing one, the attempts are used up, or the server asks for more patience than the policy has.
    ///
    /// `retry_after` is the server's own wish.
    pub(crate) async fn pause(
        &mut self,
        error: FetchError,
        retry_after: Option<Duration>,
    ) -> Result<(), FetchError> {
        self.failed = self.failed.saturating_add(1);
        if !error.is_retryable() || self.failed >= self.policy.attempts {
            return Err(error);
        }
        let pause = match retry_after {
            Some(wish) if wish > self.policy.longest_retry_after => return Err(error),
            Some(wish) => wish,
            None => self.backoff(),
        };
        tracing::debug!(%error, ?pause, failed = self.failed, "Will try again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn backoff(&self) -> Duration {
        let doubled = self
            .policy
            .first_pause
            .saturating_mul(1 << (self.failed - 1).min(16));
        let whole = doubled.min(self.policy.longest_pause);
        // Half is fixed, half is random, so that the clients of one failed server do not come back all at once.
        let half = whole / 2;
        half + half.mul_f64(random_fraction())
    }
}

/// What `Retry-After` asks for: seconds, or the time until a date.
///
/// Source: RFC 9110, section 10.2.3.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean longer than anybody waits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u32::MAX.into())));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The error for a status that asks to come back later.
pub(crate) fn rate_limited(registry: &str, wish: Option<Duration>) -> FetchError {
    let until = wish.and_then(|wish| SystemTime::now().checked_add(wish));
    FetchError::new(
        FetchErrorKind::RateLimited { until },
        match wish {
            Some(wish) => format!(
                "registry {registry} limits the rate of requests for {} s",
                wish.as_secs()
            ),
            None => format!("registry {registry} limits the rate of requests"),
        },
    )
}

/// From the keys that the standard library seeds its hash maps with; good enough to spread clients.
fn random_fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 12;
    #[expect(clippy::cast_precision_loss, reason = "52 bits fit the mantissa")]
    let fraction = bits as f64 / (1_u64 << 52) as f64;
    fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, expected) in [
            ("0", Some(0)),
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            assert_eq!(
                retry_after(&headers, now),
                expected.map(Duration::from_secs),
                "{text}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_end() {
        let mut attempts = Attempts::new(RetryPolicy::default());
        let mut pauses = Vec::new();
        loop {
            let start = tokio::time::Instant::now();
            if attempts.pause(FetchError::transient("x"), None).await.is_err() {
                break;
            }
            pauses.push(start.elapsed());
        }
        assert_eq!(pauses.len(), 4);
        for (pause, whole) in pauses.iter().zip([250, 500, 1000, 2000]) {
            let whole = Duration::from_millis(whole);
            assert!(
                *pause >= whole / 2 && *pause <= whole + Duration::from_millis(2),
                "{pause:?} of {whole:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wish_fails_at_once_and_a_short_one_is_kept() {
        let mut attempts = Attempts::new(RetryPolicy::default());
        let start = tokio::time::Instant::now();
        attempts
            .pause(rate_limited("r", None), Some(Duration::from_secs(100)))
            .await
            .unwrap();
        assert_eq!(start.elapsed().as_secs(), 100);
        let error = attempts
            .pause(
                rate_limited("r", Some(Duration::from_secs(3600))),
                Some(Duration::from_secs(3600)),
            )
            .await
            .unwrap_err();
        assert!(matches!(
            error.kind(),
            FetchErrorKind::RateLimited { until: Some(_) }
        ));
    }
}
