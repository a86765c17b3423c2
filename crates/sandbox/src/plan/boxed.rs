//! The steps of a box: three processes, one list for each, pure data.
//!
//! ```text
//! launching process
//!   └─ helper        the host's namespaces; joins the control groups, maps the user ids
//!        └─ init     process 1 of the new namespaces; makes the empty root, then waits and reaps
//!             └─ the program
//! ```
//!
//! The program is not process 1 itself, because the kernel lets process 1 ignore the signals that end any other: an
//! abort, or a file that grows past its limit, would not end it (`pid_namespaces(7)`).

use std::{ffi::CString, fmt};

use serde::{Deserialize, Serialize};

use super::{HIGHEST_TARGET, Resource, c_string_bytes};
use crate::{
    isolation::{Isolation, Layer},
    seccomp::{self, Instruction},
};

/// The helper's own descriptors, above all that a program can have.
pub(crate) const STATUS: i32 = HIGHEST_TARGET - 23;
pub(crate) const PLAN: i32 = STATUS + 1;
pub(crate) const PROGRAM: i32 = STATUS + 2;
/// One `cgroup.procs` for each hierarchy, at most [`MAX_GROUPS`].
pub(crate) const FIRST_GROUP: i32 = STATUS + 3;
pub(crate) const MAX_GROUPS: usize = 16;
/// What is executed as the helper.
pub(crate) const HELPER: i32 = HIGHEST_TARGET;

/// The user and group that a program has inside its user namespace. Not 0: nothing in a box needs to own anything.
pub(crate) const INNER_ID: u32 = 65_534;

/// What the helper is told.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BoxPlan {
    /// The index of the first step in messages: the steps of the launching process's fork come before.
    pub(crate) first_index: u32,
    pub(crate) helper: Vec<BoxStep>,
    /// The namespaces of init, as flags of `clone(2)`.
    pub(crate) namespaces: u64,
    /// The user and group ids outside that [`INNER_ID`] stands for.
    pub(crate) outer_ids: (u32, u32),
    /// Whether the helper may map any id, as root may.
    pub(crate) privileged: bool,
    pub(crate) init: Vec<BoxStep>,
    pub(crate) program: Vec<BoxStep>,
    pub(crate) execution: Execution,
}

/// What the last step executes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Execution {
    /// A path, or `None` for the descriptor [`PROGRAM`].
    pub(crate) path: Option<CString>,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum BoxStep {
    /// `close_range(STATUS, …, CLOSE_RANGE_CLOEXEC)`: the helper's own descriptors end with the execution.
    CloseOwnOnExec,
    /// Writes itself into the control group behind the descriptor.
    JoinGroup { descriptor: i32 },
    /// Not dumpable: neither the program nor anyone else of the same user may look into this process.
    Undumpable,
    /// Waits for the helper to have mapped the user ids.
    AwaitIds,
    /// No supplementary groups.
    NoGroups,
    /// `setresgid`, `setresuid`.
    BecomeUser { id: u32 },
    /// `PR_SET_PDEATHSIG` and a look at the parent; after everything that changes credentials, which would clear it.
    DieWithParent,
    /// A control group namespace, made after the groups were joined: the program's paths then begin there.
    OwnGroupRoot,
    /// A host name that says nothing.
    HostName,
    /// A session keyring without the host's keys.
    OwnKeyring,
    /// Nothing that is mounted from now on is seen outside, and the other way round.
    PrivateMounts,
    /// An empty, read-only file system as the root; everything else is unmounted.
    EmptyRoot,
    /// `setsid`.
    NewSession,
    /// `umask 077`.
    Umask,
    /// `setrlimit`.
    Limit {
        resource: Resource,
        soft: u64,
        hard: u64,
    },
    /// All capabilities out of the bounding and the ambient set.
    EmptyBoundingSet,
    /// Secure bits, locked: user id 0 means nothing.
    LockCapabilities,
    /// All capabilities out of all other sets.
    DropCapabilities,
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges,
    /// No file, port, abstract socket or signal beyond this process, as far as the kernel's version goes.
    Landlock,
    /// An empty mask and default handlers.
    ResetSignals,
    /// The list of system calls.
    Seccomp(Vec<Instruction>),
    /// `execveat` or `execve`.
    Execute,
}

/// What a box plan depends on beside the spec.
#[derive(Debug)]
pub(crate) struct BoxFacts {
    /// Steps of the fork that come before.
    pub(crate) first_index: u32,
    pub(crate) isolation: Isolation,
    /// How many hierarchies there are to join.
    pub(crate) n_groups: i32,
    /// See [`BoxPlan::outer_ids`].
    pub(crate) outer_ids: (u32, u32),
    /// Whether the launching process may clear supplementary groups and map any id, as root may.
    pub(crate) privileged: bool,
    /// The limits, already cut to what the launching process may set.
    pub(crate) limits: Vec<(Resource, u64, u64)>,
    pub(crate) execution: Execution,
}

/// All the namespaces that are made at once; the one of control groups comes later.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

impl BoxPlan {
    pub(crate) fn new(facts: BoxFacts) -> Self {
        let layers = facts.isolation.layers;
        let namespaced = layers.has(Layer::Namespaces);
        let mut helper = vec![BoxStep::CloseOwnOnExec];
        helper.extend((0..facts.n_groups).map(|index| BoxStep::JoinGroup {
            descriptor: FIRST_GROUP + index,
        }));

        let mut init = Vec::new();
        if namespaced {
            init.push(BoxStep::AwaitIds);
            if facts.privileged {
                init.push(BoxStep::NoGroups);
            }
            init.push(BoxStep::BecomeUser { id: INNER_ID });
        }
        // A change of credentials has made it dumpable again.
        init.extend([BoxStep::Undumpable, BoxStep::DieWithParent]);
        if namespaced {
            init.extend([
                BoxStep::OwnGroupRoot,
                BoxStep::HostName,
                BoxStep::OwnKeyring,
                BoxStep::PrivateMounts,
                BoxStep::EmptyRoot,
            ]);
        }

        let mut limits = facts.limits;
        if layers.has(Layer::Seccomp) {
            keep_below_own_descriptors(&mut limits);
        }
        let mut program = vec![BoxStep::NewSession, BoxStep::DieWithParent, BoxStep::Umask];
        program.extend(limits.into_iter().map(|(resource, soft, hard)| BoxStep::Limit {
            resource,
            soft,
            hard,
        }));
        if namespaced {
            program.extend([
                BoxStep::EmptyBoundingSet,
                BoxStep::LockCapabilities,
                BoxStep::DropCapabilities,
            ]);
        }
        program.push(BoxStep::NoNewPrivileges);
        if layers.has(Layer::Landlock) {
            program.push(BoxStep::Landlock);
        }
        program.push(BoxStep::ResetSignals);
        if layers.has(Layer::Seccomp) {
            let descriptor = u32::try_from(PROGRAM).unwrap_or(0);
            program.push(BoxStep::Seccomp(seccomp::filter(
                facts.isolation.calls,
                descriptor,
            )));
        }
        program.push(BoxStep::Execute);
        Self {
            first_index: facts.first_index,
            helper,
            namespaces: if namespaced {
                u64::from(NAMESPACES.cast_unsigned())
            } else {
                0
            },
            outer_ids: facts.outer_ids,
            privileged: facts.privileged,
            init,
            program,
            execution: facts.execution,
        }
    }

    /// All steps in the order of their indices, in words.
    pub(crate) fn words(&self) -> impl Iterator<Item = String> {
        let named = |who: &'static str| move |step: &BoxStep| format!("{who}: {step}");
        let helper = self.helper.iter().map(named("helper"));
        let namespaces = std::iter::once("helper: namespaces".to_owned());
        let init = self.init.iter().map(named("init"));
        let start = std::iter::once("init: start the program".to_owned());
        let program = self.program.iter().map(named("program"));
        helper.chain(namespaces).chain(init).chain(start).chain(program)
    }

    /// The index of the step that makes the namespaces.
    pub(crate) fn namespaces_index(&self) -> u32 {
        self.first_index + count(&self.helper)
    }

    /// The index of the first step of init.
    pub(crate) fn init_index(&self) -> u32 {
        self.namespaces_index() + 1
    }

    /// The index of the step that starts the program's process.
    pub(crate) fn start_index(&self) -> u32 {
        self.init_index() + count(&self.init)
    }

    /// The index of the first step of the program.
    pub(crate) fn program_index(&self) -> u32 {
        self.start_index() + 1
    }
}

/// The filter knows the one execution that it lets pass by the number [`PROGRAM`]: a program that could copy a
/// descriptor there could execute it, and what is in memory is no file that landlock would look at.
fn keep_below_own_descriptors(limits: &mut Vec<(Resource, u64, u64)>) {
    let most = u64::try_from(STATUS).unwrap_or(0);
    match limits
        .iter_mut()
        .find(|(resource, ..)| *resource == Resource::OpenFiles)
    {
        Some((_, soft, hard)) => (*soft, *hard) = ((*soft).min(most), (*hard).min(most)),
        None => limits.push((Resource::OpenFiles, most, most)),
    }
}

impl Execution {
    /// Strings for `execve`; the caller has looked for zero bytes.
    pub(crate) fn new(path: Option<CString>, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        Self {
            path,
            arguments,
            environment,
        }
    }

    /// `argv[0]` of a program without a path.
    pub(crate) fn name(name: &str) -> CString {
        c_string_bytes(name.as_bytes()).unwrap_or_default()
    }
}

fn count(steps: &[BoxStep]) -> u32 {
    u32::try_from(steps.len()).unwrap_or(u32::MAX)
}

impl fmt::Display for BoxStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::CloseOwnOnExec => "close on exec",
            Self::JoinGroup { descriptor } => {
                return write!(formatter, "join control group {}", descriptor - FIRST_GROUP);
            }
            Self::Undumpable => "undumpable",
            Self::AwaitIds => "await user ids",
            Self::NoGroups => "no groups",
            Self::BecomeUser { id } => return write!(formatter, "become user {id}"),
            Self::DieWithParent => "die with parent",
            Self::OwnGroupRoot => "own control group root",
            Self::HostName => "host name",
            Self::OwnKeyring => "own keyring",
            Self::PrivateMounts => "private mounts",
            Self::EmptyRoot => "empty root",
            Self::NewSession => "new session",
            Self::Umask => "umask 077",
            Self::Limit { resource, soft, hard } => {
                return write!(formatter, "limit {resource} {soft} {hard}");
            }
            Self::EmptyBoundingSet => "empty bounding set",
            Self::LockCapabilities => "lock capabilities",
            Self::DropCapabilities => "drop capabilities",
            Self::NoNewPrivileges => "no new privileges",
            Self::Landlock => "landlock",
            Self::ResetSignals => "reset signals",
            Self::Seccomp(filter) => return write!(formatter, "seccomp, {} instructions", filter.len()),
            Self::Execute => "execute",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{isolation::Layers, seccomp::Calls};

    fn plan(layers: Layers, privileged: bool) -> BoxPlan {
        BoxPlan::new(BoxFacts {
            first_index: 10,
            isolation: Isolation {
                layers,
                calls: Calls::Worker,
                own_user: false,
            },
            n_groups: if layers.has(Layer::ControlGroups) { 2 } else { 0 },
            outer_ids: (1_879_048_192, 1_879_048_192),
            privileged,
            limits: vec![(Resource::CoreSize, 1, 1), (Resource::OpenFiles, 64, 64)],
            execution: Execution::new(None, vec![Execution::name("worker")], Vec::new()),
        })
    }

    fn lines(plan: &BoxPlan) -> Vec<String> {
        plan.words()
            .map(|line| match line.split_once("seccomp, ") {
                Some((before, _)) => format!("{before}seccomp"),
                None => line,
            })
            .collect()
    }

    #[test]
    fn a_box_with_all_layers_is_made_in_this_order() {
        let plan = plan(Layers::ALL, true);
        assert_eq!(
            lines(&plan),
            [
                "helper: close on exec",
                "helper: join control group 0",
                "helper: join control group 1",
                "helper: namespaces",
                "init: await user ids",
                "init: no groups",
                "init: become user 65534",
                "init: undumpable",
                "init: die with parent",
                "init: own control group root",
                "init: host name",
                "init: own keyring",
                "init: private mounts",
                "init: empty root",
                "init: start the program",
                "program: new session",
                "program: die with parent",
                "program: umask 077",
                "program: limit core size 1 1",
                "program: limit open files 64 64",
                "program: empty bounding set",
                "program: lock capabilities",
                "program: drop capabilities",
                "program: no new privileges",
                "program: landlock",
                "program: reset signals",
                "program: seccomp",
                "program: execute",
            ]
        );
        assert_eq!(plan.namespaces, 0x7C02_0000);
        let lines = lines(&plan);
        let at = |index: u32| lines[(index - 10) as usize].as_str();
        assert_eq!(at(plan.namespaces_index()), "helper: namespaces");
        assert_eq!(at(plan.init_index()), "init: await user ids");
        assert_eq!(at(plan.start_index()), "init: start the program");
        assert_eq!(at(plan.program_index()), "program: new session");
    }

    #[test]
    fn without_any_layer_the_rest_still_holds() {
        let plan = plan(Layers::NONE, false);
        assert_eq!(
            lines(&plan),
            [
                "helper: close on exec",
                "helper: namespaces",
                "init: undumpable",
                "init: die with parent",
                "init: start the program",
                "program: new session",
                "program: die with parent",
                "program: umask 077",
                "program: limit core size 1 1",
                "program: limit open files 64 64",
                "program: no new privileges",
                "program: reset signals",
                "program: execute",
            ]
        );
        assert_eq!(plan.namespaces, 0);
    }

    #[test]
    fn only_the_privileged_can_clear_groups() {
        let words = lines(&plan(Layers::ALL, false));
        assert!(!words.contains(&"init: no groups".to_owned()));
    }

    #[test]
    fn a_plan_survives_its_journey_to_the_helper() {
        let plan = plan(Layers::ALL, true);
        let bytes = postcard::to_stdvec(&plan).unwrap();
        assert_eq!(postcard::from_bytes::<BoxPlan>(&bytes).unwrap(), plan);
    }
}
