//! What is around the daemon: kernel, programs, clock, registries.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{Finding, Verdict};
use crate::config::Values;

/// The first kernel with landlock, and with everything else that a box is made of.
const KERNEL: (u32, u32) = (5, 13);

/// How long a registry may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A clock that differs by more makes certificates and tokens invalid.
const SKEW: Duration = Duration::from_secs(60);

/// Who is asked when no mirror is set.
const DOCKER_HUB: &str = "https://registry-1.docker.io";

pub(super) fn findings(values: &Values, findings: &mut Vec<Finding>) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    findings.push(kernel(release.trim()));
    findings.push(mke2fs(values.text("ROOTFS_BACKEND") == "mke2fs"));
    registry(values, findings);
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    };
    let is_enough = version.is_some_and(|version| version >= KERNEL);
    Finding {
        verdict: if is_enough { Verdict::Good } else { Verdict::Weak },
        subject: "kernel".to_owned(),
        found: if release.is_empty() { "unknown" } else { release }.to_owned(),
        advice: if is_enough {
            ""
        } else {
            "use Linux 5.13 or later: landlock, a layer of the workers' boxes, came with it"
        },
    }
}

fn mke2fs(is_needed: bool) -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .map(|directory| directory.join("mkfs.ext4"))
        .find(|program| program.is_file());
    let subject = "e2fsprogs".to_owned();
    match (found, is_needed) {
        (Some(program), _) => Finding {
            verdict: Verdict::Good,
            subject,
            found: program.display().to_string(),
            advice: "",
        },
        (None, false) => Finding {
            verdict: Verdict::Good,
            subject,
            found: "not there, and not needed: ROOTFS_BACKEND is native".to_owned(),
            advice: "",
        },
        (None, true) => Finding {
            verdict: Verdict::Bad,
            subject,
            found: "mkfs.ext4 is not there, and ROOTFS_BACKEND is mke2fs".to_owned(),
            advice: "apt-get install e2fsprogs, or set UNKEY_BUILDERD_ROOTFS_BACKEND=native",
        },
    }
}

/// Asks a registry for anything: whether it answers, and what time it has.
fn registry(values: &Values, findings: &mut Vec<Finding>) {
    let mirror = values.text("DOCKER_REGISTRY_MIRROR");
    let address = match mirror {
        "" => DOCKER_HUB.to_owned(),
        mirror if mirror.contains("://") => mirror.trim_end_matches('/').to_owned(),
        mirror => format!("https://{mirror}"),
    };
    let subject = format!("registry {address}");
    let asked = ask(&address, values.text("DOCKER_HTTPS_PROXY"));
    let date = match asked {
        Ok(date) => {
            findings.push(Finding {
                verdict: Verdict::Good,
                subject,
                found: "answers".to_owned(),
                advice: "",
            });
            date
        }
        Err(reason) => {
            findings.push(Finding {
                verdict: Verdict::Weak,
                subject,
                found: reason,
                advice: "where builds pull from it: look at the network and name servers, or set \
                         UNKEY_BUILDERD_DOCKER_REGISTRY_MIRROR or UNKEY_BUILDERD_DOCKER_HTTPS_PROXY",
            });
            None
        }
    };
    findings.push(clock(date, SystemTime::now()));
}

/// The time of a registry, where it tells it. An answer of any kind is an answer.
fn ask(address: &str, proxy: &str) -> Result<Option<SystemTime>, String> {
    let mut builder = reqwest::blocking::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none());
    if !proxy.is_empty() {
        // The proxy's address may hold a password, which an error would repeat.
        let proxy =
            reqwest::Proxy::all(proxy).map_err(|_| "the proxy's address cannot be read".to_owned())?;
        builder = builder.proxy(proxy);
    }
    let client = builder.build().map_err(|error| error.to_string())?;
    let answer = client
        .get(format!("{address}/v2/"))
        .send()
        .map_err(|error| super::super::chain(&error.without_url()))?;
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
    Ok(date.and_then(|date| httpdate::parse_http_date(date).ok()))
}

fn clock(theirs: Option<SystemTime>, ours: SystemTime) -> Finding {
    let subject = "clock".to_owned();
    let Some(theirs) = theirs else {
        let synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
        return Finding {
            verdict: Verdict::Good,
            subject,
            found: match synchronized {
                true => "synchronized, as systemd-timesyncd says".to_owned(),
                false => "nobody to compare it with".to_owned(),
            },
            advice: "",
        };
    };
    let difference = match ours.duration_since(theirs) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    let is_right = difference <= SKEW;
    Finding {
        verdict: if is_right { Verdict::Good } else { Verdict::Weak },
        subject,
        found: format!("{} s from the registry's", difference.as_secs()),
        advice: if is_right {
            ""
        } else {
            "synchronize it (systemd-timesyncd, chrony): certificates, tokens and days of quotas go by it"
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_release() {
        for (release, expected) in [
            ("6.1.0-18-amd64", Verdict::Good),
            ("5.13.0", Verdict::Good),
            ("5.10.0-28-amd64", Verdict::Weak),
            ("", Verdict::Weak),
            ("custom", Verdict::Weak),
        ] {
            assert_eq!(kernel(release).verdict, expected, "{release}");
        }
    }

    #[test]
    fn a_clock_is_wrong_when_it_differs_by_more_than_a_minute() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (seconds, expected) in [(0, Verdict::Good), (60, Verdict::Good), (61, Verdict::Weak)] {
            let other = now + Duration::from_secs(seconds);
            assert_eq!(clock(Some(other), now).verdict, expected, "{seconds} s behind");
            assert_eq!(clock(Some(now), other).verdict, expected, "{seconds} s ahead");
        }
        assert_eq!(clock(None, now).verdict, Verdict::Good);
    }

    #[test]
    fn a_registry_that_does_not_answer_is_no_reason_not_to_start() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        drop(taken);
        assert!(ask(&format!("http://{address}"), "").is_err());
    }
}
