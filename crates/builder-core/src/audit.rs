//! Who did what to what, and what came of it: events for an audit log, in one shape wherever they come from.
//!
//! ```json
//! {"time":"2026-11-22T10:00:00.000000Z","action":"DeleteBuild","actor":{"kind":"tenant","id":"acme"},"tenant":"acme",
//!  "target":"build-…","result":"refused","code":"FAILED_PRECONDITION","reason":"2 virtual machines use the image"}
//! ```
//!
//! What happens outside of a request (a build whose time is over, a tenant's record that an operator changed) is first a row
//! of the database, written in the transaction that does it; the daemon takes such rows to its log. No event holds a secret:
//! there is no field for one, and reasons are the texts that callers get.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Characters of a text in an event; what is longer is cut off.
const LONGEST_TEXT: usize = 500;

/// One thing that was done, or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When, in RFC 3339 to the microsecond, in UTC.
    pub time: String,
    /// What: a method (`CreateBuild`), `tenant.set-tier`, `tenant.set-limits`, `retention.delete`, `storage.evict`.
    pub action: String,
    /// Who.
    pub actor: Actor,
    /// Whose build or record; the one that a refused request named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// On what: a build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What came of it.
    pub result: AuditResult,
    /// The status in gRPC's words, as `PERMISSION_DENIED`; absent without one, or for OK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why, in the words that the caller got, or those that an operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was changed, from what to what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<serde_json::Value>,
}

/// Who did it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// `tenant` and `service` have shown who they are, `unchecked` was not asked (AUTH_MODE=none), `unknown` did not show it;
    /// `cli` is a user of the machine, `builderd` the service itself.
    pub kind: String,
    /// The tenant, the identity, or the user's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The user whom the caller names; its word alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where it called from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditResult {
    /// It was done.
    Ok,
    /// It was not, because of who asked or what was asked for.
    Refused,
    /// It was not, or the service cannot tell.
    Failed,
    /// Nobody waited for the end, because the caller left or the time was over: it may have been done.
    Unknown,
}

impl AuditEvent {
    /// Something that was done now.
    #[must_use]
    pub fn new(action: impl Into<String>, actor: Actor, time: SystemTime) -> Self {
        Self {
            time: rfc3339(time),
            action: action.into(),
            actor,
            tenant: None,
            target: None,
            result: AuditResult::Ok,
            code: None,
            reason: None,
            change: None,
        }
    }

    /// With whose it is.
    #[must_use]
    pub fn of_tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(shortened(tenant.into()));
        self
    }

    /// With what it was done to.
    #[must_use]
    pub fn on(mut self, target: impl Into<String>) -> Self {
        self.target = Some(shortened(target.into()));
        self
    }

    /// With the reason.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(shortened(reason.into()));
        self
    }

    /// One line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Plain data with string keys; it always has a form.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Actor {
    /// The service itself.
    #[must_use]
    pub fn builderd() -> Self {
        Self {
            kind: "builderd".to_owned(),
            ..Self::default()
        }
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A moment in RFC 3339 to the microsecond, in UTC. Moments before 1970 count as 1970.
#[must_use]
pub fn rfc3339(moment: SystemTime) -> String {
    let since: Duration = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // The civil calendar in eras of 400 years that begin with March, so that a leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_in_the_civil_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000007Z"),
            (951_782_399, "2000-02-28T23:59:59.000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000007Z"),
            (951_868_800, "2000-03-01T00:00:00.000007Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000007Z"),
        ] {
            let moment = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(7);
            assert_eq!(rfc3339(moment), expected);
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let event = AuditEvent::new("CreateBuild", Actor::builderd(), UNIX_EPOCH)
            .of_tenant("acme")
            .because("a\nb\u{1b}[2J".repeat(1000));
        let line = event.to_line();
        assert!(!line.contains(['\n', '\u{1b}']) && line.len() < 4096, "{line}");
        assert_eq!(serde_json::from_str::<AuditEvent>(&line).unwrap(), event);
    }
}
