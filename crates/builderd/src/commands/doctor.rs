//! `builderd doctor`: what this host offers, and what to do about what it does not.

mod surroundings;

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use sandbox::{Layer, Sandbox};

use crate::{
    config::Values,
    exit::{Exit, Failure},
    isolation,
};

/// What became of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// A build works without it.
    Weak,
    /// `builderd serve` would not start with its production defaults.
    Bad,
}

/// One line of the report.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    /// What was looked at.
    subject: String,
    /// What was found.
    found: String,
    /// What to do; empty for nothing.
    advice: &'static str,
}

/// The command line of `doctor`.
pub(super) fn command() -> Command {
    Command::new("doctor")
        .about("Check this host, and say what to do about what is missing")
        .long_about(
            "Tries out every layer of isolation and every directory of the settings (variables UNKEY_BUILDERD_…), looks at \
             kernel, e2fsprogs, clock and the registries that the settings name (as the daemon would reach them), and \
             says what to do about what does not work. Ends with 69 when `builderd serve` would not start for it.",
        )
        .arg(
            Arg::new("dev")
                .long("dev")
                .action(ArgAction::SetTrue)
                .help("Look at the directory of `serve --dev` instead of those of the settings"),
        )
        .arg(
            Arg::new("state-dir")
                .long("state-dir")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .requires("dev")
                .help("Where --dev keeps its state [default: ./builderd-data]"),
        )
}

/// Prints the report.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let state = matches.get_flag("dev").then(|| {
        let given = matches.get_one::<PathBuf>("state-dir").cloned();
        given.unwrap_or_else(|| PathBuf::from(super::serve::DEFAULT_STATE_DIRECTORY))
    });
    let values = Values::collect(std::env::vars_os(), |_| None, state.as_deref()).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Usage, lines.join("\n"))
    })?;
    let mut findings = Vec::new();
    isolation_findings(&mut findings)?;
    for (setting, directory) in values.directories() {
        findings.push(directory_finding(setting, &directory));
    }
    surroundings::findings(&values, state.is_some(), &mut findings)?;
    let report: String = findings.iter().map(line).collect();
    io::stdout()
        .write_all(report.as_bytes())
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot write the report: {error}")))?;
    let n_bad = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad)
        .count();
    match (n_bad, state) {
        (0, _) | (_, Some(_)) => Ok(()),
        (n_bad, None) => Err(Failure::new(
            Exit::Unavailable,
            format!("{n_bad} checks failed: `builderd serve` does not start with its production defaults"),
        )),
    }
}

fn line(finding: &Finding) -> String {
    let word = match finding.verdict {
        Verdict::Good => "ok  ",
        Verdict::Weak => "weak",
        Verdict::Bad => "BAD ",
    };
    let advice = if finding.advice.is_empty() {
        String::new()
    } else {
        format!("\n       -> {}", finding.advice)
    };
    format!("{word}  {}: {}{advice}\n", finding.subject, finding.found)
}

fn isolation_findings(findings: &mut Vec<Finding>) -> Result<(), Failure> {
    let cannot = |error: &dyn std::error::Error| {
        Failure::new(Exit::Internal, format!("cannot try out isolation: {error}"))
    };
    // A name that nobody can foresee: root is about to make directories in it.
    let scratch = tempfile::Builder::new().prefix("builderd-doctor-").tempdir();
    let scratch = scratch.map_err(|error| cannot(&error))?;
    let sandbox = isolation::try_out(Some(scratch.path())).map_err(|error| cannot(&error))?;
    for layer in Layer::ALL {
        findings.push(layer_finding(&sandbox, layer));
    }
    findings.push(match sandbox.own_users() {
        Ok(()) => Finding {
            verdict: Verdict::Good,
            subject: "user ids of a box's own".to_owned(),
            found: "can be had (sandbox level 3)".to_owned(),
            advice: "",
        },
        Err(reason) => Finding {
            verdict: Verdict::Weak,
            subject: "user ids of a box's own".to_owned(),
            found: format!("{reason} (no sandbox level 3)"),
            advice: "run the daemon as root; it gives its workers other user ids",
        },
    });
    Ok(())
}

fn layer_finding(sandbox: &Sandbox, layer: Layer) -> Finding {
    let missing = sandbox.missing().iter().find(|missing| missing.layer == layer);
    let Some(missing) = missing else {
        let version = match (layer, sandbox.groups()) {
            (Layer::ControlGroups, Some(groups)) => format!("works ({})", groups.version()),
            _ => "works".to_owned(),
        };
        return Finding {
            verdict: Verdict::Good,
            subject: layer.to_string(),
            found: version,
            advice: "",
        };
    };
    let advice = match layer {
        Layer::Namespaces => {
            "allow user namespaces: sysctl user.max_user_namespaces=10000, and where they exist \
             kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0"
        }
        Layer::ControlGroups => {
            "run as root, or let systemd hand a sub-tree over: Delegate=yes in the unit, or \
             `systemd-run --user --scope -p Delegate=yes builderd …`; in a container, mount /sys/fs/cgroup writable"
        }
        Layer::Seccomp => "use a kernel with CONFIG_SECCOMP_FILTER; every distribution's has it",
        Layer::Landlock => {
            "use Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK, and landlock in the kernel argument lsm="
        }
        _ => "",
    };
    Finding {
        verdict: Verdict::Bad,
        subject: layer.to_string(),
        found: missing.reason.clone(),
        advice,
    }
}

/// The nearest directory that exists has to take a new file.
fn directory_finding(setting: &str, directory: &Path) -> Finding {
    let there = directory
        .ancestors()
        .find(|path| path.as_os_str().is_empty() || path.exists());
    let place = match there {
        Some(path) if !path.as_os_str().is_empty() => path.to_owned(),
        _ => PathBuf::from("."),
    };
    let writable = if place.is_dir() {
        can_create(&place)
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    };
    let subject = format!("{setting} {}", directory.display());
    match writable {
        Ok(()) => Finding {
            verdict: Verdict::Good,
            subject,
            found: if place == directory {
                "can be written to".to_owned()
            } else {
                format!("will be made in {}", place.display())
            },
            advice: "",
        },
        Err(error) => Finding {
            verdict: Verdict::Bad,
            subject,
            found: format!("{}: {error}", place.display()),
            advice: "give it to the daemon's user, set another directory, or start with --dev",
        },
    }
}

fn can_create(directory: &Path) -> io::Result<()> {
    let name = directory.join(format!(".builderd-doctor-{}", std::process::id()));
    fs::File::options().write(true).create_new(true).open(&name)?;
    fs::remove_file(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_good_when_it_or_its_nearest_parent_takes_a_file() {
        let place = std::env::temp_dir();
        let deeper = place.join("builderd-doctor-test/a/b");
        assert_eq!(directory_finding("WORKSPACE_DIR", &place).verdict, Verdict::Good);
        assert_eq!(directory_finding("WORKSPACE_DIR", &deeper).verdict, Verdict::Good);
        // Nobody makes a file there, root neither.
        let finding = directory_finding("WORKSPACE_DIR", Path::new("/proc/nowhere"));
        assert_eq!(finding.verdict, Verdict::Bad);
        let text = line(&finding);
        assert!(
            text.starts_with("BAD   WORKSPACE_DIR /proc/nowhere: /proc: "),
            "{text}"
        );
        assert!(text.contains("\n       -> "), "{text}");
    }
}
