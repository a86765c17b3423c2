//! From a [`Spec`] to the ordered steps of the child: pure data, no system call.
//!
//! The order is part of the safety: descriptors are closed before limits could hinder it, limits are set before
//! anything of the program runs, signals stay blocked until the child is complete.

use std::{
    collections::BTreeSet,
    ffi::{CString, OsStr},
    fmt,
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use serde::{Deserialize, Serialize};

pub(crate) mod boxed;

use crate::{
    error::LaunchErrorKind,
    program::Program,
    spec::{Limits, Spec},
};

/// Highest number that a descriptor of a [`Spec`] can have in the child.
const HIGHEST_NAMED: i32 = 255;

/// Highest number that any descriptor can have in the child; those above [`HIGHEST_NAMED`] are the helper's.
///
/// Sources are first moved above it, so it must leave room below the usual soft limit of 1024 open files.
pub(crate) const HIGHEST_TARGET: i32 = 279;

/// Everything between `fork` and `execve`, allocated beforehand: the child of a process with several threads must not
/// allocate.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) program: Executable,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) placements: Vec<Placement>,
}

/// What `execve` or `execveat` is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Executable {
    Path(CString),
    /// A number in the child.
    Descriptor(i32),
}

/// A descriptor of the launching process and its number in the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) source: i32,
    pub(crate) target: i32,
}

/// What the kernel limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Resource {
    CoreSize,
    FileSize,
    OpenFiles,
    AddressSpace,
    CpuSeconds,
    Processes,
}

/// Facts of the launching process that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<F> {
    /// Its process id.
    pub(crate) parent: i32,
    /// A descriptor of `/dev/null`.
    pub(crate) null: i32,
    /// Its hard limit; `None` is unlimited.
    pub(crate) hard_limit: F,
}

/// One step of the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `setsid`: a session and process group of its own, no controlling terminal, so that TIOCSTI has no target.
    NewSession,
    /// `PR_SET_PDEATHSIG`, then a look whether the parent is already gone. It comes after anything that changes
    /// credentials, which would clear it (there is no such step yet).
    DieWithParent { parent: i32 },
    /// Every disposition back to the default; the mask stays full until the end.
    ResetSignals,
    /// `umask`.
    Umask(u32),
    /// `chdir`.
    WorkingDirectory(CString),
    /// Moves every source above [`HIGHEST_TARGET`], where no target can overwrite it.
    LiftDescriptors,
    /// `close_range(3, …, CLOSE_RANGE_CLOEXEC)`: whatever is open now is gone after `execve`.
    CloseOnExec,
    /// `dup2` of every lifted source to its number, which clears close-on-exec for it alone.
    PlaceDescriptors,
    /// `setrlimit`.
    Limit {
        resource: Resource,
        soft: u64,
        hard: u64,
    },
    /// `PR_SET_NO_NEW_PRIVS`: no set-user-id program gives back what was taken away.
    NoNewPrivileges,
    /// Tells the launching process how large the child already was (see `sys::Message::Baseline`).
    ReportBaseline,
    /// An empty mask: signals are delivered again.
    UnblockSignals,
    /// `execve`.
    Execute,
}

impl Plan {
    /// The plan for `spec`, or what is wrong with it.
    pub(crate) fn new(
        spec: &Spec,
        facts: &Facts<impl Fn(Resource) -> Option<u64>>,
    ) -> Result<Self, LaunchErrorKind> {
        let (path, arguments) = command(spec)?;
        let program = path.map_or(Executable::Descriptor(boxed::PROGRAM), Executable::Path);
        let environment = environment(spec)?;
        let mut placements = placements(spec, facts.null)?;
        if let Program::Sealed(sealed) = &spec.program {
            placements.push(Placement {
                source: sealed.as_fd().as_raw_fd(),
                target: boxed::PROGRAM,
            });
        }
        let mut steps = vec![
            Step::NewSession,
            Step::DieWithParent { parent: facts.parent },
            Step::ResetSignals,
            Step::Umask(0o077),
            Step::WorkingDirectory(absolute("working_directory", &spec.working_directory)?),
            Step::LiftDescriptors,
            Step::CloseOnExec,
            Step::PlaceDescriptors,
        ];
        let limits = limits(&spec.limits, &facts.hard_limit);
        steps.extend(limits.map(|(resource, soft, hard)| Step::Limit { resource, soft, hard }));
        steps.extend([
            Step::NoNewPrivileges,
            Step::ReportBaseline,
            Step::UnblockSignals,
            Step::Execute,
        ]);
        Ok(Self {
            steps,
            program,
            arguments,
            environment,
            placements,
        })
    }

    /// The plan of the fork that executes the helper: what concerns the process itself, and the descriptors of `spec`
    /// and of the helper, so that both have their final numbers. The rest is the helper's to do.
    pub(crate) fn for_helper(
        spec: &Spec,
        facts: &Facts<impl Fn(Resource) -> Option<u64>>,
        own: &[Placement],
    ) -> Result<Self, LaunchErrorKind> {
        let mut placements = placements(spec, facts.null)?;
        placements.extend_from_slice(own);
        let steps = vec![
            Step::NewSession,
            Step::DieWithParent { parent: facts.parent },
            Step::ResetSignals,
            Step::Umask(0o077),
            Step::WorkingDirectory(c"/".to_owned()),
            Step::LiftDescriptors,
            Step::CloseOnExec,
            Step::PlaceDescriptors,
            Step::NoNewPrivileges,
            Step::UnblockSignals,
            Step::Execute,
        ];
        Ok(Self {
            steps,
            program: Executable::Descriptor(boxed::HELPER),
            arguments: vec![c"sandbox-helper".to_owned()],
            environment: Vec::new(),
            placements,
        })
    }
}

/// Program and arguments as strings for `execve`; no program for one in memory.
pub(crate) fn command(spec: &Spec) -> Result<(Option<CString>, Vec<CString>), LaunchErrorKind> {
    let (program, name) = match &spec.program {
        Program::Path(path) => {
            let path = absolute("program", path)?;
            (Some(path.clone()), path)
        }
        Program::Sealed(sealed) => (None, boxed::Execution::name(sealed.name())),
    };
    let mut arguments = vec![name];
    for argument in &spec.arguments {
        arguments.push(c_string("arguments", argument)?);
    }
    Ok((program, arguments))
}

pub(crate) fn environment(spec: &Spec) -> Result<Vec<CString>, LaunchErrorKind> {
    let mut environment = Vec::with_capacity(spec.environment.len());
    for (name, value) in &spec.environment {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            let reason = format!("{name:?} is not a name: expected at least one character and no =");
            return Err(LaunchErrorKind::InvalidSpec {
                field: "environment",
                reason,
            });
        }
        let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
        environment.push(c_string("environment", OsStr::from_bytes(&entry))?);
    }
    Ok(environment)
}

fn placements(spec: &Spec, null: i32) -> Result<Vec<Placement>, LaunchErrorKind> {
    let standard = [(&spec.stdin, 0), (&spec.stdout, 1), (&spec.stderr, 2)];
    let mut placements: Vec<Placement> = standard
        .into_iter()
        .map(|(fd, target)| Placement {
            source: fd.as_ref().map_or(null, AsRawFd::as_raw_fd),
            target,
        })
        .collect();
    let mut used = BTreeSet::new();
    for (fd, target) in &spec.descriptors {
        let target = *target;
        let invalid = |reason| {
            Err(LaunchErrorKind::InvalidSpec {
                field: "descriptors",
                reason,
            })
        };
        if !(3..=HIGHEST_NAMED).contains(&target) {
            return invalid(format!(
                "number {target} in the child is not in 3..={HIGHEST_NAMED}"
            ));
        }
        if !used.insert(target) {
            return invalid(format!("number {target} in the child is given twice"));
        }
        placements.push(Placement {
            source: fd.as_raw_fd(),
            target,
        });
    }
    Ok(placements)
}

/// Resource limits as soft and hard figures, cut to what the launching process may set.
pub(crate) fn limits(
    limits: &Limits,
    hard_limit: &impl Fn(Resource) -> Option<u64>,
) -> impl Iterator<Item = (Resource, u64, u64)> {
    let wanted = [
        // Where a program is fed the dumps, as systemd-coredump, the kernel ignores 0 and heeds 1, by which it tells that a dump
        // would lead to another; a file is not written with less than a page. do_coredump in fs/coredump.c.
        (Resource::CoreSize, Some(1), 0),
        (Resource::FileSize, limits.file_size_bytes, 0),
        (Resource::OpenFiles, limits.open_files, 0),
        (Resource::AddressSpace, limits.address_space_bytes, 0),
        // With equal limits the kernel would send SIGKILL at once, and the outcome could not tell why.
        (Resource::CpuSeconds, limits.cpu_seconds, 1),
    ];
    wanted.into_iter().filter_map(move |(resource, wanted, slack)| {
        let ceiling = hard_limit(resource).unwrap_or(u64::MAX);
        let hard = wanted?.saturating_add(slack).min(ceiling);
        let soft = wanted?.min(hard);
        Some((resource, soft, hard))
    })
}

fn absolute(field: &'static str, path: &Path) -> Result<CString, LaunchErrorKind> {
    if !path.is_absolute() {
        let reason = format!("{} is not an absolute path", path.display());
        return Err(LaunchErrorKind::InvalidSpec { field, reason });
    }
    c_string(field, path.as_os_str())
}

/// `None` when there is a zero byte in it.
pub(crate) fn c_string_bytes(bytes: &[u8]) -> Option<CString> {
    CString::new(bytes).ok()
}

fn c_string(field: &'static str, value: &OsStr) -> Result<CString, LaunchErrorKind> {
    let reason = "holds a zero byte".to_owned();
    CString::new(value.as_bytes()).map_err(|_| LaunchErrorKind::InvalidSpec { field, reason })
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::CoreSize => "core size",
            Self::FileSize => "file size",
            Self::OpenFiles => "open files",
            Self::AddressSpace => "address space",
            Self::CpuSeconds => "CPU seconds",
            Self::Processes => "processes",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewSession => formatter.write_str("new session"),
            Self::DieWithParent { .. } => formatter.write_str("die with parent"),
            Self::ResetSignals => formatter.write_str("reset signals"),
            Self::Umask(mask) => write!(formatter, "umask {mask:03o}"),
            Self::WorkingDirectory(path) => {
                write!(formatter, "working directory {}", path.to_string_lossy())
            }
            Self::LiftDescriptors => formatter.write_str("lift descriptors"),
            Self::CloseOnExec => formatter.write_str("close on exec"),
            Self::PlaceDescriptors => formatter.write_str("place descriptors"),
            Self::Limit { resource, soft, hard } => write!(formatter, "limit {resource} {soft} {hard}"),
            Self::NoNewPrivileges => formatter.write_str("no new privileges"),
            Self::ReportBaseline => formatter.write_str("report baseline"),
            Self::UnblockSignals => formatter.write_str("unblock signals"),
            Self::Execute => formatter.write_str("execute"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd, time::Duration};

    use super::*;

    fn facts() -> Facts<impl Fn(Resource) -> Option<u64>> {
        Facts {
            parent: 4711,
            null: 9,
            hard_limit: |_| None,
        }
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn lines(plan: &Plan) -> Vec<String> {
        plan.steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_full_spec_becomes_these_steps_in_this_order() {
        let mut spec = Spec::new("/bin/worker");
        spec.working_directory = "/srv".into();
        spec.limits = Limits {
            file_size_bytes: Some(1000),
            open_files: Some(64),
            address_space_bytes: Some(1 << 30),
            cpu_seconds: Some(5),
            wall_time: Some(Duration::from_secs(9)),
            ..Limits::default()
        };
        let plan = Plan::new(&spec, &facts()).unwrap();
        assert_eq!(
            lines(&plan),
            [
                "new session",
                "die with parent",
                "reset signals",
                "umask 077",
                "working directory /srv",
                "lift descriptors",
                "close on exec",
                "place descriptors",
                "limit core size 1 1",
                "limit file size 1000 1000",
                "limit open files 64 64",
                "limit address space 1073741824 1073741824",
                "limit CPU seconds 5 6",
                "no new privileges",
                "report baseline",
                "unblock signals",
                "execute",
            ]
        );
    }

    #[test]
    fn without_limits_only_core_dumps_are_limited() {
        let plan = Plan::new(&Spec::new("/bin/true"), &facts()).unwrap();
        let limits: Vec<_> = lines(&plan)
            .into_iter()
            .filter(|line| line.starts_with("limit"))
            .collect();
        assert_eq!(limits, ["limit core size 1 1"]);
    }

    #[test]
    fn a_limit_is_cut_to_the_hard_limit_of_the_launching_process() {
        let mut spec = Spec::new("/bin/true");
        spec.limits.cpu_seconds = Some(100);
        spec.limits.open_files = Some(10);
        let facts = Facts {
            parent: 1,
            null: 9,
            hard_limit: |_| Some(50),
        };
        let plan = Plan::new(&spec, &facts).unwrap();
        let limits: Vec<_> = lines(&plan)
            .into_iter()
            .filter(|line| line.starts_with("limit"))
            .collect();
        assert_eq!(
            limits,
            [
                "limit core size 1 1",
                "limit open files 10 10",
                "limit CPU seconds 50 50"
            ]
        );
    }

    #[test]
    fn standard_descriptors_default_to_null_and_the_rest_keep_their_numbers() {
        let mut spec = Spec::new("/bin/true");
        spec.descriptors = vec![(null(), 7), (null(), 3)];
        let sources: Vec<i32> = spec.descriptors.iter().map(|(fd, _)| fd.as_raw_fd()).collect();
        let plan = Plan::new(&spec, &facts()).unwrap();
        let expected = [(9, 0), (9, 1), (9, 2), (sources[0], 7), (sources[1], 3)]
            .map(|(source, target)| Placement { source, target });
        assert_eq!(plan.placements, expected);
    }

    #[test]
    fn specs_that_nobody_can_carry_out_are_refused() {
        type Change = fn(&mut Spec);
        let cases: [(&str, &str, Change); 9] = [
            ("relative program", "program", |spec| spec.program = "sh".into()),
            ("zero byte in program", "program", |spec| {
                spec.program = "/bin/\0sh".into()
            }),
            ("zero byte in argument", "arguments", |spec| {
                spec.arguments = vec!["a\0b".into()]
            }),
            ("empty variable name", "environment", |spec| {
                spec.environment = vec![("".into(), "x".into())]
            }),
            ("= in variable name", "environment", |spec| {
                spec.environment = vec![("A=B".into(), "x".into())]
            }),
            ("relative directory", "working_directory", |spec| {
                spec.working_directory = "data".into()
            }),
            ("standard number", "descriptors", |spec| {
                spec.descriptors = vec![(null(), 2)]
            }),
            ("number too high", "descriptors", |spec| {
                spec.descriptors = vec![(null(), 256)]
            }),
            ("number twice", "descriptors", |spec| {
                spec.descriptors = vec![(null(), 5), (null(), 5)]
            }),
        ];
        for (name, expected, change) in cases {
            let mut spec = Spec::new("/bin/true");
            change(&mut spec);
            match Plan::new(&spec, &facts()) {
                Err(LaunchErrorKind::InvalidSpec { field, .. }) => assert_eq!(field, expected, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
