//! What is around the daemon: kernel, programs, clock, registries.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use oci_fetch::{ClientConfig, FetchError, Probed, Timeouts};
use tenant::AllowedHosts;

use super::{Finding, Verdict};
use crate::{
    config::{Config, Values},
    daemon::{self, MIRRORED_REGISTRY},
    exit::Failure,
};

/// The first kernel with landlock, and with everything else that a box is made of.
const KERNEL: (u32, u32) = (5, 13);

/// How long a registry may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A clock that differs by more makes certificates and tokens invalid.
const SKEW: Duration = Duration::from_secs(60);

/// Registries that are asked, of those that the settings name.
const MOST_REGISTRIES: usize = 16;

pub(super) fn findings(
    values: &Values,
    development: bool,
    findings: &mut Vec<Finding>,
) -> Result<(), Failure> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    findings.push(kernel(release.trim()));
    findings.push(mke2fs(values.text("ROOTFS_BACKEND") == "mke2fs"));
    let Some((config, fetch)) = settings(values, development, findings) else {
        // Without settings nobody knows how registries are reached.
        findings.push(clock(None, SystemTime::now()));
        return Ok(());
    };
    registries(&config, &fetch, findings)
}

/// What the daemon would know of registries; `None`, with the reasons as findings, where it would not start.
fn settings(
    values: &Values,
    development: bool,
    findings: &mut Vec<Finding>,
) -> Option<(Config, ClientConfig)> {
    let refused = |found: String| Finding {
        verdict: Verdict::Bad,
        subject: "settings".to_owned(),
        found,
        advice: "`builderd config` says the same; docs/operations/configuration.md has all settings",
    };
    let config = match Config::from_values(values, development) {
        Ok(config) => config,
        Err(errors) => {
            findings.extend(errors.iter().map(|error| refused(error.to_string())));
            return None;
        }
    };
    for idle in &config.idle {
        findings.push(Finding {
            verdict: Verdict::Weak,
            subject: "settings".to_owned(),
            found: idle.to_string(),
            advice: "",
        });
    }
    match daemon::fetch_config(&config) {
        Ok(fetch) => Some((config, fetch)),
        Err(error) => {
            let mut text = super::super::chain(&error);
            if let daemon::DaemonError::Setting { setting, source } = &error {
                text = format!("{setting}: {}", super::super::chain(source.as_ref()));
            }
            findings.push(refused(text));
            None
        }
    }
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

/// Asks the registries that the settings name whether they answer, and what time they have.
fn registries(config: &Config, fetch: &ClientConfig, findings: &mut Vec<Finding>) -> Result<(), Failure> {
    let fetch = fetch.clone().with_timeouts(Timeouts {
        connect: PATIENCE,
        header: PATIENCE,
        ..Timeouts::default()
    });
    let names = named_registries(config);
    let asked = super::super::runtime()?
        .block_on(async { join_all(names.iter().map(|name| oci_fetch::probe(&fetch, name))).await });
    let mut date = None;
    for (name, asked) in names.iter().zip(asked) {
        match asked {
            Ok(probed) => {
                for probed in probed {
                    date = date.or_else(|| probed.answer.as_ref().ok()?.date);
                    findings.push(registry(name, &probed));
                }
            }
            Err(error) => findings.push(silent(format!("registry {name}"), &error)),
        }
    }
    findings.push(clock(date, SystemTime::now()));
    Ok(())
}

/// Docker Hub where it may be pulled from, and what the settings name exactly.
fn named_registries(config: &Config) -> Vec<String> {
    let patterns = config.allowed_registries.iter().map(|name| name.parse());
    let allowed = patterns.collect::<Result<Vec<_>, _>>().unwrap_or_default();
    let is_hub_allowed = allowed.is_empty() || AllowedHosts::only(allowed).allows(MIRRORED_REGISTRY);
    let hub = is_hub_allowed.then(|| MIRRORED_REGISTRY.to_owned());
    let exact = config
        .allowed_registries
        .iter()
        .chain(&config.insecure_registries)
        .filter(|name| !name.contains('*'));
    let mut names: Vec<String> = Vec::new();
    for name in hub.into_iter().chain(exact.cloned()) {
        if !names.contains(&name) && names.len() < MOST_REGISTRIES {
            names.push(name);
        }
    }
    names
}

fn registry(name: &str, probed: &Probed) -> Finding {
    let subject = match probed.is_mirror {
        true => format!("mirror {} of {name}", probed.address),
        false => format!("registry {}", probed.address),
    };
    match &probed.answer {
        Ok(_) => Finding {
            verdict: Verdict::Good,
            subject,
            found: "answers".to_owned(),
            advice: "",
        },
        Err(error) => silent(subject, error),
    }
}

fn silent(subject: String, error: &FetchError) -> Finding {
    Finding {
        verdict: Verdict::Weak,
        subject,
        found: super::super::chain(error),
        advice: "where builds pull from it: look at the network and name servers, and at UNKEY_BUILDERD_DOCKER_HTTPS_PROXY, \
                 _DOCKER_REGISTRY_MIRROR, _DOCKER_CERTS_DIR (an authority of its own), _DOCKER_INSECURE_REGISTRIES (plain \
                 HTTP) and _DOCKER_ALLOWED_REGISTRIES (a private address)",
    }
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
}
